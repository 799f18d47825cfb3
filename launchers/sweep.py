"""One recipe at several values of its keys, seeds for one: an array of SLURM jobs, with a run for each combination.

The runs lie in a folder of the name that the one run would have had, and are called after what is theirs. Each has its
job's files in itself, as if it had been submitted alone: it is requeued, followed, cancelled and resumed alone.
"""

from __future__ import annotations

import itertools
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gamut.errors import RecipeError, RunError
from gamut.recipe import cli
from gamut.track.run import RunFolder
from launchers.cluster import Cluster
from launchers.executor import executor_in, require_sbatch
from launchers.job import Job, write_job
from launchers.options import ARRAY

OPTION = "--sweep"


@dataclass(frozen=True)
class Point:
    """A run of the array."""

    words: list[str]
    typed: cli.Command

    @property
    def place(self) -> Path:
        return RunFolder.place(self.typed.recipe)

    @property
    def folder(self) -> Path:
        """Of its job's files."""
        return self.place.absolute() / "slurm"


def values_of(text: str) -> list[str]:
    """`optim.lr=1e-4,3e-4` -> the two overrides; a comma in brackets divides nothing. Raises RecipeError."""
    key, _, listed = text.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", listed)]
    if not key or not all(values):
        raise RecipeError(f"{OPTION} {text!r} must be KEY=VALUE,VALUE,..., such as seed=0,1,2 or optim.lr=1e-4,3e-4.")
    if key in ("run.name", "run.folder"):
        raise RecipeError(f"{OPTION} names the runs itself, by their values: {key} cannot be swept over.")
    return [f"{key}={value}" for value in values]


def points(stage: str, words: Sequence[str], sweeps: Sequence[str]) -> list[Point]:
    """A point for each combination. Raises RecipeError where one is no recipe, and where two would be one run."""
    axes = [values_of(text) for text in sweeps]
    keys = [axis[0].partition("=")[0] for axis in axes]
    if len({*keys}) < len(keys):
        raise RecipeError(f"{OPTION} is given twice for one key: put all of its values behind the first.")
    name = cli.parse(stage, list(words)).recipe.run.name
    found = []
    for combination in itertools.product(*axes):
        labels = (re.sub(r"[^\w.+-]+", "-", word.partition("=")[2]).strip("-") for word in combination)
        own = "_".join(f"{key.rpartition('.')[2]}-{label}" for key, label in zip(keys, labels, strict=True))
        point = [*words, *combination, f"run.name={name}/{own}"]
        found.append(Point(point, cli.parse(stage, point)))
    if len({point.place for point in found}) < len(found):
        raise RecipeError(f"Two runs of {OPTION} would be called the same: their values differ in nothing but marks.")
    if len(found) > ARRAY:
        raise RecipeError(f"{OPTION} makes {len(found)} runs; an array holds {ARRAY} jobs at most.")
    return found


def submit(
    stage: str, made: Sequence[Point], environment: dict[str, str], cluster: Cluster, at_once: int, after: str
) -> str:
    """Submit the array and print where to look; its number. Raises RunError where SLURM refuses.

    at_once: how many of the runs may run at the same time; after: a job that must have ended well before.
    """
    require_sbatch()
    top = made[0].place.absolute().parent
    links = top / f"sweep-{uuid.uuid4().hex[:8]}"  # by the numbers that SLURM knows the runs by
    links.mkdir(parents=True)
    jobs = []
    for index, point in enumerate(made):
        path = point.folder / f"job-{uuid.uuid4().hex[:12]}.json"
        jobs.append(Job(str(write_job(path, stage, point.words, environment, cluster))))
        (links / str(index)).symlink_to(Path("..") / point.place.name / point.folder.name)
    executor = executor_in(links / "%a", top.name, cluster)
    executor.failures = cluster.failures
    executor.update_parameters(array_parallelism=at_once)
    if after:
        executor.follow(after)
    try:
        number = executor.submit_apart(jobs, [point.folder for point in made])
    except Exception as error:  # submitit raises its own kinds, and the system's
        for job in jobs:
            Path(job.path).unlink(missing_ok=True)
        shutil.rmtree(links)
        raise RunError(f"SLURM did not take the jobs: {error}") from error
    print(f"job {number}: an array of {len(made)} runs, each {cluster.tasks} tasks on {cluster.nodes} nodes")
    for index, point in enumerate(made):
        print(f"  {number}_{index}  {point.place}")
    print(f"`python launchers/jobs.py logs RUN` shows what one prints; `python -m gamut.runs list {top}` shows all")
    print(f"stop them with `scancel {number}`; `python launchers/jobs.py resume RUN` goes on with one")
    return number
