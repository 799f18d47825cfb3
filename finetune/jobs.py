"""Many `finetune/run.py` runs: side by side, each in a process of its own, none of them twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from gamut.errors import GamutError, RecipeError
from gamut.evaluate import METRICS
from gamut.recipe.load import load_recipe
from gamut.runs.words import marked, seen_by
from gamut.track.run import SUMMARY

Arm = TypeVar("Arm", bound=Hashable)
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """One run with its arguments, which make it run in `folder`."""

    name: str
    arguments: tuple[str, ...]
    folder: Path


def call(name: str, words: Sequence[str], log: Path, threads: int) -> None:
    """Run `python WORDS` on so many threads, what it says going to the end of `log`.

    Raises GamutError, with the last lines of the log, where it ends with another status than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("a") as output:
        done = subprocess.run(
            [sys.executable, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path},
            check=False,
        )
    if done.returncode:
        tail = "".join(log.read_text().splitlines(keepends=True)[-5:])
        raise GamutError(f"{name} ended with status {done.returncode}; the end of {log}:\n{tail}")


def run_job(job: Job, threads: int) -> dict:
    """Run a job in a process of its own unless its result is there already; returns its summary.

    Raises GamutError where the process fails, or the folder holds another job, or one from other weights than `init`
    means now.
    """
    result, asked = job.folder / SUMMARY, job.folder / "arguments.json"
    if asked.exists() and json.loads(asked.read_text()) != list(job.arguments):
        raise GamutError(f"{job.folder} holds a run with other arguments ({asked}): give another --out, or remove it.")
    if result.exists():
        found = json.loads(result.read_text())
        recipe = load_recipe("finetune", job.arguments[0], job.arguments[1:])
        from finetune.start import require_start, start_of  # here: torch takes its time

        require_start(found.get("rounds", []), start_of(recipe), recipe.init, job.folder)
        return found
    job.folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps(job.arguments))
    words = [str(ROOT / "finetune" / "run.py"), *job.arguments, f"run.threads={threads}"]
    call(job.name, words, job.folder / "output.log", threads)
    return json.loads(result.read_text())


def share_of_cores(parallel: int) -> int:
    """Threads of each of so many processes side by side."""
    return max(1, (os.cpu_count() or 1) // parallel)


def choose_rates(
    arms: Sequence[Arm], rates: Sequence[str], job: Callable[[Arm, str], Job], parallel: int, console: Console
) -> dict[Arm, str]:
    """Arm -> the rate of the grid with which `job(arm, rate)` scores best, of equal ones the first.

    Of a grid of one that rate, and of an empty one "", which stands for the recipe's own: nothing is then run.
    """
    if len(rates) < 2:
        return dict.fromkeys(arms, "".join(rates))
    trials = [(arm, rate) for arm in arms for rate in rates]
    best: dict[Arm, float] = {}
    chosen: dict[Arm, str] = {}
    results = run_all([job(arm, rate) for arm, rate in trials], parallel, console)
    for (arm, rate), result in zip(trials, results, strict=True):
        if METRICS[result["metric"]].better(result["mean"], best.get(arm)):
            best[arm], chosen[arm] = result["mean"], rate
    return chosen


def run_all(jobs: list[Job], parallel: int, console: Console) -> list[dict]:
    """Run jobs, `parallel` at a time, each with its share of the cores; results in the order of the jobs. Raises
    RecipeError for fewer than one at a time, GamutError where a job fails."""
    if parallel < 1:
        raise RecipeError(f"--jobs is {parallel}; it must be 1 or more.")
    threads = share_of_cores(parallel)
    results: list[dict] = []
    with ThreadPoolExecutor(parallel) as pool:
        for number, (job, result) in enumerate(zip(jobs, pool.map(lambda j: run_job(j, threads), jobs), strict=True)):
            console.print(
                f"[{number + 1}/{len(jobs)}] {job.name}: "
                f"{marked(METRICS[result['metric']].show(result['mean']), seen_by([result]))}",
                highlight=False,
            )
            results.append(result)
    return results
