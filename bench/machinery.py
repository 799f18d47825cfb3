"""What a step costs besides its arithmetic: the loader, the engine, the tracker, what is shown.

    python bench/machinery.py [--steps 300] [--workers 0]
    python bench/machinery.py --whole [--against TREE]

Trains a head of a hundred parameters on records of 16 bytes, 32 clips a step, by the run's own loop: there is nothing
to compute, so what is left is the machinery. Medians over the steps, part by part, of the CPU time of the whole
process, which on one core is the time by the clock (goal: 5 ms a step).

With --whole: a head of 4,600 parameters on 400 records of 77 kB, 300 steps, as a command of its own, and how long it
takes from typing to its score and to its end, and in CPU time of all its threads; --against another checkout of Gamut,
in turn (goal: 12 s to the score).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(ROOT)

CLIPS, CLASSES, FOLDS = 400, 10, 5
SMALL, LARGE = (1, 1, 8), (4, 25, 384)  # layers, steps, dimensions of a record


def make(folder: Path, record: tuple[int, int, int]) -> list[str]:
    """A set of clips without audio, and features of them; the words of a command that trains a head on four folds."""
    from gamut.features import write_cache
    from gamut.shards import Index
    from gamut.shards.build import build
    from gamut.shards.part import Part

    columns = {"fold": [clip % FOLDS + 1 for clip in range(CLIPS)]}
    keys, labels = [f"clip-{clip}" for clip in range(CLIPS)], [[clip // FOLDS % CLASSES] for clip in range(CLIPS)]
    ones = np.ones(CLIPS, np.int64)
    shards = folder / "shards"
    shards.mkdir()
    (shards / "shard-000000.tar").write_bytes(b"\0")
    part = Part("shard-000000.tar", 1, 0, "made", {}, keys, 0 * ones, ones, 80_000 * ones, [0] * CLIPS, labels, columns)  # type: ignore[arg-type]
    build(shards, "made", [str(number) for number in range(CLASSES)], [part])
    index = Index.open(shards)
    random = np.random.default_rng(0)
    x = random.standard_normal((CLIPS, *record), np.float32)
    x += 0.3 * random.standard_normal((CLASSES, *record), np.float32)[[own[0] for own in labels]]
    write_cache(folder / "features", x, clip_id=index.clip_id, index=index.fingerprint)
    words = ["whisper_at_esc10", "head.kind=last_mlp", f"data={shards}", f"features={folder / 'features'}"]
    return [*words, "folds.test=[[5]]", f"run.folder={folder / 'runs'}", "run.name=head", "run.threads=1"]


class Clock:
    """Seconds of each step by part: what is called within a timed call counts for the inner one alone."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = [{}]
        self._open: list[float] = []  # seconds of inner calls, of each timed call that is open

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._open.append(0.0)
        since = time.process_time()
        try:
            yield
        finally:
            took = time.process_time() - since
            self.steps[-1][name] = self.steps[-1].get(name, 0.0) + took - self._open.pop()
            if self._open:
                self._open[-1] += took

    def timed(self, kind: type, method: str, name: str) -> None:
        call: Callable[..., Any] = getattr(kind, method)

        @functools.wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        setattr(kind, method, wrapped)

    def steps_of(self, loader: type) -> None:
        """Let a step be what lies between two batches, the wait for the second included."""
        plain = loader.__iter__  # type: ignore[misc]

        def iterate(mine: Any) -> Iterator[Any]:
            batches, since = plain(mine), time.process_time()
            while True:
                with self.part("loader"):
                    found = next(batches, None)
                if found is None:
                    return
                yield found
                self.steps[-1]["whole"] = time.process_time() - since
                self.steps.append({})
                since = time.process_time()

        loader.__iter__ = iterate  # type: ignore[misc]


def by_part(words: list[str]) -> dict[str, float]:
    """Milliseconds a step, medians, of a fine-tuning in this process."""
    from finetune.heads import TagFeatures
    from finetune.run import main
    from gamut.data.loader import Loader
    from gamut.progress import TrainingProgress
    from gamut.track.tracker import Tracker
    from gamut.train.step import Stepper
    from gamut.train.zero import Zero

    clock = Clock()
    clock.steps_of(Loader)
    for kind, methods, name in (
        (Stepper, ["take"], "counts and metrics over ranks"),
        (TagFeatures, ["prepare", "loss"], "features mixed and masked, forward, loss"),
        (Zero, ["backward"], "engine: backward"),
        (Zero, ["gradient_square", "set_schedule", "apply"], "engine: norm, update"),
        (Tracker, ["log"], "tracker"),
        (TrainingProgress, ["update"], "progress"),
    ):
        for method in methods:
            clock.timed(kind, method, name)
    if main(words):
        raise SystemExit("The run failed.")
    steps = [step for step in clock.steps[10:] if "whole" in step]  # after the first, in which torch warms up
    names = dict.fromkeys(name for step in steps for name in step if name != "whole")
    found = {name: 1000 * statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    whole = 1000 * statistics.median(step["whole"] for step in steps)
    return found | {"the loop's own": whole - sum(found.values()), "a step": whole}


def whole(tree: Path, words: list[str]) -> tuple[float, float, float]:
    """Seconds of a command of a checkout: (from typing to the score, to the end, CPU time)."""
    line = [sys.executable, str(tree / "finetune" / "run.py"), *words]
    since, scored, before = time.perf_counter(), 0.0, os.times()
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for said in process.stdout:
            scored = scored or (time.perf_counter() - since if "accuracy" in said else 0.0)
    if process.returncode:
        raise SystemExit(f"The run of {tree} failed.")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return scored, time.perf_counter() - since, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--against", type=Path, metavar="TREE")
    parser.add_argument("--rounds", type=int, default=3, help="of --whole")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = make(folder, LARGE if options.whole else SMALL)
        words += [f"loader.workers={options.workers}"]
        if not options.whole:
            epochs = max(4, options.steps // 10)
            words += [f"epochs={epochs}", "finetune.average_from=2", f"finetune.evaluate_epochs={epochs}"]
            table = Table("part", "ms a step")
            for part, took in by_part([*words, "track.mlflow=off"]).items():
                table.add_row(part, f"{took:.2f}")
            console.print(table)
            return
        trees = [ROOT, *([options.against.resolve()] if options.against else [])]
        found: dict[Path, list[tuple[float, float, float]]] = {tree: [] for tree in trees}
        for round in range(options.rounds):
            for number, tree in enumerate(trees):
                found[tree].append(whole(tree, [*words, f"run.name=head-{round}-{number}"]))
        table = Table("of", "s to the score", "s to the end", "s of CPU")
        for tree, times in found.items():
            table.add_row(str(tree), *(f"{statistics.median(one):.1f}" for one in zip(*times, strict=True)))
        console.print(table)


if __name__ == "__main__":
    main()
