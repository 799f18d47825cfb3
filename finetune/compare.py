"""Compare initialisations ("arms") under one recipe: is the pretrained backbone worth its hours?

Each arm's learning rate is chosen from the same grid on a part of the training folds; then every arm is trained with
several seeds on all of them and scored on the test folds, last epoch, the same clips for every arm. The difference
between the first two arms comes with its paired bootstrap 95 % interval over clips.

Example:
    python finetune/compare.py esc10 --arm pretrained=runs/asit_tiny --arm scratch= \\
        --train 1,2,3 --test 4,5 --choose-test 3 --grid 3e-4,1e-3 --seeds 3 data=shards/esc10
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from rich.console import Console
from rich.table import Table

from gamut.errors import GamutError, command
from gamut.evaluate.metrics import paired_bootstrap
from gamut.track import figures

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One `finetune/run.py` run: an arm with a learning rate, on given folds, with given seeds."""

    name: str
    arguments: tuple[str, ...]
    folder: Path


def folds(text: str) -> list[int]:
    """`1,2` -> [1, 2]"""
    return [int(part) for part in text.split(",") if part]


def run_job(job: Job, threads: int) -> dict:
    """Run a job in a process of its own unless its result is there already; returns its summary.

    Raises GamutError where the process fails, or the folder holds another job.
    """
    result, asked = job.folder / "summary.json", job.folder / "arguments.json"
    if asked.exists() and json.loads(asked.read_text()) != list(job.arguments):
        raise GamutError(f"{job.folder} holds a run with other arguments ({asked}): give another --out, or remove it.")
    if not result.exists():
        job.folder.mkdir(parents=True, exist_ok=True)
        asked.write_text(json.dumps(job.arguments))
        with (job.folder / "output.log").open("a") as log:
            done = subprocess.run(
                [sys.executable, str(HERE / "run.py"), *job.arguments, f"run.threads={threads}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                check=False,
            )
        if done.returncode or not result.exists():
            tail = "".join((job.folder / "output.log").read_text().splitlines(keepends=True)[-5:])
            raise GamutError(f"{job.name} ended with status {done.returncode}; the end of {log.name}:\n{tail}")
    return json.loads(result.read_text())


def run_all(jobs: list[Job], parallel: int, console: Console) -> list[dict]:
    """Run jobs, `parallel` at a time, each with its share of the cores; results in the order of the jobs."""
    threads = max(1, (os.cpu_count() or 1) // parallel)
    results: list[dict] = []
    with ThreadPoolExecutor(parallel) as pool:
        for number, (job, result) in enumerate(zip(jobs, pool.map(lambda j: run_job(j, threads), jobs), strict=True)):
            console.print(f"[{number + 1}/{len(jobs)}] {job.name}: {result['mean']:.1%}", highlight=False)
            results.append(result)
    return results


def right(result: dict) -> np.ndarray:
    """float64 [seeds, clips]: 1 where a clip was classified rightly, clips in index order."""
    rows = []
    for entry in result["rounds"]:
        with np.load(entry["scores"], allow_pickle=False) as scores:
            order = np.argsort(scores["row"])
            rows.append((scores["target"].argmax(1) == scores["logits"].argmax(1))[order].astype(np.float64))
    return np.stack(rows)


def by_class(result: dict) -> np.ndarray:
    """float64 [classes]: share of each class's clips that were classified rightly, over all rounds and seeds."""
    counts = np.sum([entry["confusion"] for entry in result["rounds"]], axis=0)
    return np.diag(counts) / np.maximum(counts.sum(1), 1)


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME=INIT", help="INIT empty: from scratch")
    parser.add_argument("--train", type=folds, required=True, metavar="1,2,3")
    parser.add_argument("--test", type=folds, required=True, metavar="4,5")
    parser.add_argument("--choose-test", type=folds, default=None, help="training folds held out to choose the rate")
    parser.add_argument("--grid", default="", metavar="3e-4,1e-3", help="learning rates; one or none: no choosing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("overrides", nargs="*", help="a.b=c, passed on to every run")
    options = parser.parse_intermixed_args(argv)  # overrides may follow the options
    console = Console()
    arms = dict(arm.split("=", 1) for arm in options.arm)
    rates = [rate for rate in options.grid.split(",") if rate]
    held_out = options.choose_test or options.train[-1:]

    def job(name: str, arm: str, rate: str | None, train: list[int], test: list[int], seeds: int) -> Job:
        arguments = [options.recipe, *options.overrides, f"run.folder={options.out}", f"run.name={name}"]
        arguments += [f"init={arms[arm]}", f"folds.train={train}", f"folds.test={[test]}", f"finetune.seeds={seeds}"]
        arguments += [f"optim.lr={rate}"] if rate else []
        return Job(name, tuple(arguments), options.out / name)

    chosen: dict[str, str | None] = dict.fromkeys(arms, rates[0] if rates else None)
    if len(rates) > 1:
        part = [fold for fold in options.train if fold not in held_out]
        trials = [(arm, rate) for arm in arms for rate in rates]
        console.print(f"Choosing each arm's learning rate: train on folds {part}, look at folds {held_out}.")
        jobs = [job(f"choose-{arm}-{rate}", arm, rate, part, held_out, 1) for arm, rate in trials]
        scores = [result["mean"] for result in run_all(jobs, options.jobs, console)]
        for arm in arms:
            of_arm = [(score, rate) for (name, rate), score in zip(trials, scores, strict=True) if name == arm]
            chosen[arm] = max(of_arm)[1]
    console.print(f"Training every arm on folds {options.train}, scoring on folds {options.test}.")
    jobs = [
        job(f"final-{arm}-{chosen[arm] or 'recipe'}", arm, chosen[arm], options.train, options.test, options.seeds)
        for arm in arms
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    results = dict(zip(arms, run_all(jobs, options.jobs, console), strict=True))
    hits = {arm: right(results[arm]) for arm in arms}
    table = Table("arm", "learning rate", "accuracy, mean", "seeds", "clips")
    report: dict = {"recipe": options.recipe, "train": options.train, "test": options.test, "arms": {}}
    for arm, hit in hits.items():
        by_seed = hit.mean(1)
        table.add_row(
            arm,
            chosen[arm] or "recipe's",
            f"{by_seed.mean():.1%}",
            " ".join(f"{x:.1%}" for x in by_seed),
            str(hit.shape[1]),
        )
        report["arms"][arm] = {"lr": chosen[arm], "accuracy": by_seed.tolist(), "clips": hit.shape[1]}
    console.print(table)
    if len(arms) > 1:
        first, second = list(arms)[:2]
        mean, low, high = paired_bootstrap(hits[first].mean(0), hits[second].mean(0), resamples=10_000, seed=0)
        report["difference"] = {"of": [first, second], "mean": mean, "low": low, "high": high}
        console.print(f"{first} - {second}: {100 * mean:+.1f} points, paired bootstrap 95 % interval "
                      f"[{100 * low:+.1f}, {100 * high:+.1f}]", highlight=False)  # fmt: skip
    (options.out / "comparison.json").write_text(json.dumps(report, indent=2))
    picture = options.out / "comparison.png"
    names = next(iter(results.values()))["labels"]
    accuracies = {arm: by_class(result) for arm, result in results.items()}
    figures.arms({arm: hit.mean(1) for arm, hit in hits.items()}, accuracies, names).savefig(picture, dpi=110)
    console.print(f"the same by class: {picture}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
