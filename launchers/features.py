"""An extraction of features as a SLURM array: the jobs share the clips to encode, and a last one does what is left.

Examples:
    python launchers/slurm.py features whisper_large_as20k --jobs 8
    python launchers/slurm.py features whisper_large_as20k init=models/large-v1.pt extract.dtype=int8 --jobs 8 --dry-run
    python launchers/slurm.py features whisper_tiny_esc50 data=shards/esc50 --local
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamut.commands import parser_of
from gamut.errors import FeatureError
from gamut.features.__main__ import STAGE, add_extraction, describe, mend, print_extracted, set_threads
from launchers.options import add_jobs, add_resources, become, resources

if TYPE_CHECKING:
    from gamut.features.extract import Job
    from gamut.recipe.schema import Recipe
    from launchers.executor import Executor


def main(argv: list[str]) -> int:
    """`python launchers/slurm.py features ...`; the exit status. Raises GamutError."""
    options = _parser().parse_intermixed_args(argv)
    if options.local:
        words = [options.recipe, *options.overrides, *(["--mend"] if options.mend else [])]
        become("-m", "gamut.features", "extract", *words)

    from gamut.recipe.load import load_recipe
    from launchers.arrays import array_executor
    from launchers.cluster import load_cluster
    from launchers.executor import require_sbatch

    changes = resources(options) | {"nodes": 1, "gpus": 0 if options.cpus_only else 1, "cpu_tasks": 1}
    cluster = load_cluster(options.cluster, changes)
    recipe = load_recipe(STAGE, options.recipe, options.overrides)
    if not options.dry_run:
        require_sbatch()
    job = _prepared(recipe)
    jobs = min(options.jobs, job.about.shards)
    made = array_executor(_folder(job), f"features-{job.about.name.replace('/', '-')}", cluster, jobs)
    if options.dry_run:
        print(f"\n{made.script(jobs)}")
        print(f"{jobs} jobs share {job.about.shards} shards; 1 more after them does what is left")
        hours = job.seconds * job.about.clips / jobs / 3600
        print(f"about {hours:,.1f} hours a job on devices like this machine's {job.device.type} (a clip was tried)")
        return 0
    if options.mend:
        mend(job.folder)
    return submit(options.recipe, options.overrides, job, jobs, made)


def submit(recipe: str, overrides: list[str], job: Job, jobs: int, executor: Executor) -> int:
    """Submit the array and the last job to SLURM, and print where to look. Raises RunError where it refuses."""
    from gamut.features.extract import require_room
    from launchers import arrays

    made = job.begin()
    if made.finished:
        print("all features exist already")
        return 0
    missing = len(made.missing())
    require_room(made, missing)
    told = {"recipe": recipe, "overrides": overrides, "folder": str(job.folder)}
    array, after = arrays.submit(executor, "features", _folder(job), jobs, told)
    print(f"{jobs} jobs, {array}, share {missing} shards; job {after} then does what is left")
    print(f"output in {_folder(job)}; stop them with `scancel {array} {after}`; the same command resumes")
    return 0


def share(told: dict[str, Any], number: int) -> None:
    """What job `number` of the array does. Raises FeatureError where a node would make other features than
    submitted."""
    from gamut.features.extract import run
    from gamut.recipe.load import load_recipe

    job, folder = _prepared(load_recipe(STAGE, told["recipe"], told["overrides"])), Path(told["folder"])
    if job.folder.absolute() != folder.absolute():
        raise FeatureError(
            f"These features belong in {job.folder}, but {folder} was submitted: the encoder or the shard set has "
            "changed since. Submit again."
        )
    print_extracted(run(job, job.begin(), number * job.about.shards // told["jobs"], told["jobs"]))


def last(told: dict[str, Any]) -> None:
    """The last job: does whatever is left."""
    share(told, 0)


def _prepared(recipe: Recipe) -> Job:
    from gamut.features.extract import prepare

    set_threads(recipe)
    job = prepare(recipe)
    print(describe(job))
    return job


def _folder(job: Job) -> Path:
    return job.folder.absolute() / "slurm"


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("submit features", __doc__, allow_abbrev=False)
    add_extraction(parser)
    add_jobs(parser, 8)
    parser.add_argument("--cpus-only", action="store_true", help="no GPU for the jobs; else each has one")
    parser.add_argument("--cpus-per-task", type=int, help="processors a job")
    add_resources(parser, dry_run="show what would be extracted and the sbatch script; submit and write nothing")
    return parser
