"""An extraction of features as a SLURM array: the jobs share what is to be encoded, a last one sees to what is left.

Examples:
    python launchers/slurm.py features whisper_large_as20k --jobs 8
    python launchers/slurm.py features whisper_large_as20k init=models/large-v1.pt extract.dtype=int8 --jobs 8 --dry-run
    python launchers/slurm.py features whisper_tiny_esc50 data=shards/esc50 --local
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import submitit
from submitit.helpers import Checkpointable

from gamut.errors import FeatureError, RunError
from gamut.features.__main__ import STAGE, add_extraction, mend, set_threads
from gamut.features.extract import Job, prepare, require_room, run
from gamut.features.outcome import describe, print_extracted
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe
from launchers.cluster import Cluster, load_cluster
from launchers.executor import Executor, add_resources, array_jobs, executor_in, resources


class Share(Checkpointable):
    """What submitit calls in every job of the array; again after a requeue. Holds no code."""

    def __init__(self, path: str, number: int) -> None:
        self.path, self.number = path, number

    def __call__(self) -> int:
        told = json.loads(Path(self.path).read_text())
        job = _ready(load_recipe(STAGE, told["recipe"], told["overrides"]), Path(told["folder"]))
        first = self.number * job.about.shards // told["jobs"]
        print_extracted(run(job, job.begin(), first, told["jobs"]), job.recipe)
        return 0


def main(argv: list[str]) -> int:
    """`python launchers/slurm.py features ...`; the exit status. Raises GamutError."""
    options = _parser().parse_intermixed_args(argv)
    changes = resources(options) | {"nodes": 1, "gpus": 0 if options.cpus_only else 1, "cpu_tasks": 1}
    cluster = load_cluster(options.cluster, changes)
    recipe = load_recipe(STAGE, options.recipe, options.overrides)
    if options.local:
        return run_here(options)
    if not options.dry_run and shutil.which("sbatch") is None:
        raise RunError("There is no sbatch on this machine: submit from a login node of the cluster, or use --local.")
    set_threads(recipe)
    job = prepare(recipe)
    print(describe(job))
    jobs = min(options.jobs, job.about.shards)
    if options.dry_run:
        made = _executor(job, jobs, cluster)
        made.parameters["map_count"] = jobs
        print(f"\n{made.script()}")
        print(f"{jobs} jobs share {job.about.shards} shards; 1 more after them sees to what is left")
        return 0
    if options.mend:
        mend(job.folder)
    return submit(options, job, jobs, cluster, _executor(job, jobs, cluster))


def submit(options: argparse.Namespace, job: Job, jobs: int, cluster: Cluster, executor: submitit.Executor) -> int:
    """Hand the array and the last job to SLURM, and say where to look. Raises RunError where it refuses."""
    made = job.begin()
    missing = 0 if made.finished else len(made.missing())
    if made.finished:
        print("all of it is there")
        return 0
    require_room(made, missing)
    path = job.folder.absolute() / "slurm" / "job.json"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    told = {"recipe": options.recipe, "overrides": options.overrides, "jobs": jobs, "folder": str(job.folder)}
    path.write_text(json.dumps(told))
    try:
        with executor.batch():
            array = [executor.submit(Share(str(path), number)) for number in range(jobs)]
        number = array[0].job_id.partition("_")[0]
        # Any end of the array will do: what a job that failed has left, the last one makes.
        executor.update_parameters(dependency=f"afterany:{number}")
        last = executor.submit(Share(str(path), 0))
    except Exception as error:  # submitit raises its own kinds, and the system's
        raise RunError(f"SLURM did not take the extraction: {error}") from error
    print(f"{jobs} jobs, {number}, share {missing} shards; job {last.job_id} then sees to what is left")
    print(f"output in {path.parent}; stop them with `scancel {number} {last.job_id}`; the same command goes on")
    return 0


def run_here(options: argparse.Namespace) -> int:
    """Become `python -m gamut.features extract`. Never returns."""
    words = [sys.executable, "-m", "gamut.features", "extract", options.recipe, *options.overrides]
    words += ["--mend"] if options.mend else []
    sys.stdout.flush()
    os.execv(words[0], words)
    return 0


def _ready(recipe: Recipe, folder: Path) -> Job:
    """The job as a node sees it. Raises FeatureError where that is not what was submitted."""
    set_threads(recipe)
    job = prepare(recipe)
    print(describe(job))
    if job.folder.absolute() != folder.absolute():
        raise FeatureError(
            f"These features belong into {job.folder}, but {folder} was submitted: the encoder or the shard set has "
            "changed since. Submit again."
        )
    return job


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launchers/slurm.py features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_extraction(parser)
    parser.add_argument(
        "--jobs", type=array_jobs, default=8, metavar="N", help="jobs of the array (default: %(default)s)"
    )
    parser.add_argument("--cpus-only", action="store_true", help="no GPU for the jobs; else each has one")
    parser.add_argument("--cpus-per-task", type=int, help="processors a job")
    add_resources(parser, dry_run="show what would be made and the sbatch script; submit and write nothing")
    return parser


def _executor(job: Job, jobs: int, cluster: Cluster) -> Executor:
    made = executor_in(job.folder.absolute() / "slurm", f"features-{job.about.name.replace('/', '-')}", cluster)
    made.update_parameters(array_parallelism=jobs)
    return made
