"""Steps on the CPU, this checkout beside another commit: is training slower than it was?

    python bench/against.py --against 8b45fc3 [--rounds 15] [--only asit_tiny]

The commit is checked out into a temporary folder (a git worktree). Of each recipe two processes, one a checkout, take
whole steps (prepare, forward, backward, DeepSpeed's update) on the same batches of noise, one thread each, in turn.
Printed is the CPU time of a step here by that there: the median over the pairs, and between which two ratios the middle
half of them lies.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
RECIPES = {
    "asit_tiny": ("pretrain", ("step.packs=1", "step.clips=4")),
    "elastic_tiny": ("finetune", ("step.packs=1",)),
    "ast_tiny": ("finetune", ("step.packs=4", "loader.packs_per_forward=4")),
}
RENAMED = {"pack_clips": "pack_sizes"}  # fields of a batch that other commits call otherwise
MEAN, STD, CLASSES = -4.27, 4.57, 50


def batch_of(name: str, path: Path) -> None:
    """Write a recipe's batch of noise."""
    import torch

    from gamut.estimate.work import work_of
    from gamut.recipe.load import load_recipe

    stage, words = RECIPES[name]
    batch = work_of(load_recipe(stage, name, ("data=nowhere", *words)), 1).batch()
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if values["label"].numel():
        values["label"] = values["label"] % CLASSES
    torch.save(values, path)


def take_steps(name: str, path: Path) -> None:
    """In the checkout that is first on the path: a step for each line on standard input; answers its CPU seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    import torch

    from gamut.data.batch import PackedBatch
    from gamut.recipe.load import load_recipe
    from gamut.registry import OBJECTIVES
    from gamut.train import world as ranks
    from gamut.train.objective import Moment
    from gamut.train.step import Asks, Stepper

    try:
        from gamut.train.loop import make_engine
    except ImportError:
        from gamut.train.engine import make_engine  # type: ignore[no-redef, attr-defined]
    stage, words = RECIPES[name]
    recipe = load_recipe(stage, name, ("data=nowhere", "run.threads=1", *words))
    world = ranks.start(recipe.run)
    if stage == "pretrain":
        objective = OBJECTIVES[recipe.objective](recipe, MEAN, STD, world.device)
    else:
        from finetune.objective import Classify

        objective = Classify(recipe, CLASSES, MEAN, STD, recipe.seed, world.device)
    values = torch.load(path, weights_only=True)
    known = {field.name for field in fields(PackedBatch)}
    values = {key if key in known else RENAMED.get(key, key): value for key, value in values.items()}
    batch = PackedBatch(**{key: value for key, value in values.items() if key in known})
    objective.model.train()
    stepper = Stepper(objective, make_engine(objective, recipe, world, 1), world)
    at = Moment(1, 0, 0, 0.5)
    for number, _ in enumerate(sys.stdin):
        since = time.process_time()
        assert stepper.take([batch], at, 1e-5, 0.04, Asks(), 0.0).applied
        print(json.dumps(time.process_time() - since if number else 0.0), file=answers, flush=True)
    ranks.stop()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gamut-against-") as name:
        tree = Path(name) / "tree"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def compare(name: str, trees: tuple[Path, Path], rounds: int, folder: Path) -> list[tuple[float, float]]:
    """CPU seconds of a step (here, there), a pair a round."""
    path = folder / f"{name}.pt"
    batch_of(name, path)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", name, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment | {"PYTHONPATH": str(tree)},
        )
        for tree in trees
    ]

    def step(process: subprocess.Popen[str]) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        print(file=process.stdin, flush=True)
        said = process.stdout.readline()
        if not said:
            raise SystemExit(f"{name}: a process ended; what it said stands above.")
        return float(json.loads(said))

    try:
        for process in (*running, *running):
            step(process)  # makes the optimiser's state, fills caches
        return [(step(running[0]), step(running[1])) for _ in range(rounds)]
    finally:
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=RECIPES)
    parser.add_argument("--serve", nargs=2, metavar=("RECIPE", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        take_steps(options.serve[0], Path(options.serve[1]))
        return
    if not options.against:
        parser.error("name a commit: --against COMMIT")
    print("| recipe | a step here, by one there | middle half | ms here | pairs |")
    print("| --- | --- | --- | --- | --- |")
    with checkout(options.against) as tree, tempfile.TemporaryDirectory() as folder:
        for name in [options.only] if options.only else RECIPES:
            pairs = compare(name, (HERE, tree), options.rounds, Path(folder))
            ratios = [here / there for here, there in pairs]
            low, _, high = statistics.quantiles(ratios, n=4)
            own = 1e3 * statistics.median(here for here, _ in pairs)
            middle = statistics.median(ratios)
            print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {own:,.0f} | {len(pairs)} |", flush=True)


if __name__ == "__main__":
    if "--serve" not in sys.argv:
        sys.path[0] = str(HERE)
    else:
        sys.path.pop(0)  # the checkout on PYTHONPATH, not the one that this file lies in
    main()
