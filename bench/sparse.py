"""What a step of ASiT that encodes what is seen costs beside one that encodes everything: operations, CPU time a clip.

    OMP_NUM_THREADS=1 python bench/sparse.py [asit_b asit_b_sparse] [--clips 1] [--rounds 3]

Operations are those of the step's account on a CPU (matrix products and attention, as `gamut estimate` counts them).
CPU seconds are of masks, forwards and the backward, in turn in one run, with blocks as they are written (not compiled);
the update of the weights is left out, since it costs the same and is shared by all clips of a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

os.environ.setdefault("DS_ACCELERATOR", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["asit_b", "asit_b_sparse"], help="the first is the measure")
    parser.add_argument("--clips", type=int, default=1, help="of a pack")
    parser.add_argument("--rounds", type=int, default=3, help="turns")
    typed = parser.parse_args()

    import torch

    from gamut.estimate.step import account
    from gamut.estimate.work import work_of
    from gamut.recipe.load import load_recipe
    from gamut.train.objective import Moment
    from pretrain.asit import Asit

    torch.set_num_threads(1)
    now, rows, steps = Moment(0, 0, 0, 0.25), [], []
    for name in typed.recipes:
        recipe = load_recipe("pretrain", name, ("data=nowhere", "precision=fp32", "step.packs=1"))
        recipe = replace(recipe, step=replace(recipe.step, clips=typed.clips, tokens=None))
        work = work_of(recipe, 1, 100)
        counted = account(recipe, work, "cpu")
        rows.append((name, work.tokens / work.clips, counted.flops / work.clips))
        task, batch = Asit(recipe, -4.0, 4.0, torch.device("cpu")), work.batch()

        def step(task: Asit = task, batch: object = batch) -> float:
            begin = time.process_time()
            prepared = task.prepare(batch, now)  # type: ignore[arg-type]
            totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
            task.loss(task.model, prepared, totals, now)[0].backward()
            return time.process_time() - begin

        step()
        steps.append(step)
    turns = [[step() / typed.clips for step in steps] for _ in range(typed.rounds)]
    table = Table(title=f"a step of {typed.clips} clips, medians of {typed.rounds} turns")
    for column in (
        "recipe",
        "tokens of the student",
        "GFLOP a clip",
        "ratio",
        "CPU seconds a clip",
        "ratio, least - most",
    ):
        table.add_column(column, justify="right")
    for (name, tokens, flops), column in zip(rows, zip(*turns), strict=True):
        ratios = [mine / turn[0] for mine, turn in zip(column, turns)]
        middle = f"{statistics.median(ratios):.3f}, {min(ratios):.3f} - {max(ratios):.3f}"
        cells = f"{tokens:.0f}", f"{flops / 1e9:.1f}", f"{flops / rows[0][2]:.3f}", f"{statistics.median(column):.2f}"
        table.add_row(name, *cells, middle)
    Console().print(table)


if __name__ == "__main__":
    main()
