"""Many `finetune/run.py` runs: side by side, each in a process of its own, none of them twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gamut.errors import GamutError

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One run with its arguments, which make it run in `folder`."""

    name: str
    arguments: tuple[str, ...]
    folder: Path


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
