"""Work distributed over a SLURM array: jobs with a share each, and one after them that does what is left.

The pickles that submitit makes hold a `Share`: a name, a path and a number, and no code.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import Checkpointable

from gamut.errors import RunError
from launchers.cluster import Cluster
from launchers.executor import Executor, executor_in

WORKS = ("convert", "features", "shares")  # modules here, each with `share(told, number)` and `last(told)`


class Share(Checkpointable):
    """What submitit calls in every job, and again after a requeue; `number` is None in the last job."""

    def __init__(self, work: str, path: str, number: int | None) -> None:
        self.work, self.path, self.number = work, path, number

    def __call__(self) -> int:
        if self.work not in WORKS:
            raise RunError(f"Unknown work {self.work!r} for an array of jobs; known are {' and '.join(WORKS)}.")
        work, told = importlib.import_module(f"launchers.{self.work}"), json.loads(Path(self.path).read_text())
        if self.number is None:
            work.last(told)
        else:
            work.share(told, self.number)
        return 0


def array_executor(folder: Path, name: str, cluster: Cluster, jobs: int) -> Executor:
    """An executor of an array of `jobs` jobs, which may all run at once."""
    made = executor_in(folder, name, cluster)
    made.update_parameters(array_parallelism=jobs)
    return made


def submit(executor: submitit.Executor, work: str, folder: Path, jobs: int, told: dict[str, Any]) -> tuple[str, str]:
    """Submit the array and the job after it to SLURM; returns the numbers of both.

    folder: where the jobs read `told`, their parameters, and write their output. Raises RunError where SLURM refuses.
    """
    path = folder / "job.json"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps(told | {"jobs": jobs}))
    try:
        with executor.batch():
            array = [executor.submit(Share(work, str(path), number)) for number in range(jobs)]
        number = array[0].job_id.partition("_")[0]
        # However the array ends: the last job does what a failed job has left, or names it.
        executor.update_parameters(dependency=f"afterany:{number}")
        last = executor.submit(Share(work, str(path), None)).job_id
    except Exception as error:  # submitit raises its own kinds, and the system's
        raise RunError(f"SLURM did not take the jobs: {error}") from error
    return number, last
