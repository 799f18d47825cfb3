"""What one micro-step of ASiT costs on the CPU, here and at an earlier commit, in turn.

    OMP_NUM_THREADS=1 python bench/host.py --before 9a5be89      # the last commit before the step was changed for GPUs

The model has the depth and losses of ASiT ViT-B at a width of 16, in bf16, uncompiled, and its clips are a sixth of a
second long: next to no arithmetic, though not what a GPU's host does, since a CPU takes other branches (masks, log-mel,
attention) and its bf16 products cost tens of microseconds each. CPU seconds are measured. Whether training on a CPU
became slower is asked by against.py.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from against import HERE, checkout

SIDE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from dataclasses import replace
from gamut.recipe.load import load_recipe
from pretrain.asit import Asit
from tests.asit import NOW
from tests.packs import packed

torch.set_num_threads(1)
TIMES = 5
recipe = load_recipe("pretrain", "asit_b", ("data=nowhere",))
small = replace(recipe.asit, hidden=16, bottleneck=16, prototypes=64, prototypes_data=None)
recipe = replace(recipe, model=replace(recipe.model, dim=16, heads=1), asit=small)
task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
task.model.bfloat16()  # as DeepSpeed has it
batch = packed([16] * 4, views=2)


def step():
    prepared = task.prepare(batch, NOW)
    totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
    share, _ = task.loss(task.model, prepared, totals, NOW)
    share.backward()
    task.predictions()
    task.after_step(NOW)


step()
print("ready", flush=True)
for _ in sys.stdin:
    begin = time.process_time()
    for _ in range(TIMES):
        step()
    print((time.process_time() - begin) / TIMES, flush=True)
"""


def side(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", SIDE, str(folder)]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        if not line:
            raise SystemExit(f"The step of {folder} failed.")
    return process


def ask(process: subprocess.Popen) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="9a5be89", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=15, help="turns")
    typed = parser.parse_args()
    with checkout(typed.before) as before:
        sides = [side(HERE), side(before)]
        turns = [[ask(process) for process in sides] for _ in range(typed.rounds)]
        for process in sides:
            process.communicate()
    now, then = (1e3 * statistics.median(column) for column in zip(*turns))
    ratios = sorted(here / there for here, there in turns)
    print(f"{now:.1f} ms of CPU a micro-step, {then:.1f} at {typed.before}: ratio {now / then:.2f}", end=" ")
    print(f"(rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
