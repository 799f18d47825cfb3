"""A conversion as a SLURM array: each job writes its share of the shards, a last one builds the index.

Examples:
    python launchers/slurm.py convert audioset /data/AudioSet shards/audioset --jobs 64 --cpus-per-task 8
    python launchers/slurm.py convert audioset /data/AudioSet shards/audioset --jobs 64 --dry-run
    python launchers/slurm.py convert vggsound /data/vggsound shards/vggsound --local
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import submitit
from submitit.helpers import Checkpointable

from gamut.errors import RunError
from gamut.shards.arguments import ConversionHelp, add_conversion, listing_of
from gamut.shards.convert.run import Conversion, finish, prepare, preview, write_share
from gamut.shards.outcome import print_converted
from launchers.cluster import Cluster, load_cluster
from launchers.executor import Executor, add_resources, array_jobs, executor_in, resources

WORKERS = 8  # processes of a job, unless --cpus-per-task says otherwise


class Share(Checkpointable):
    """What submitit calls in every job of the array; again, in the same shape, after a requeue. Holds no code."""

    def __init__(self, path: str, number: int) -> None:
        self.path, self.number = path, number

    def __call__(self) -> int:
        job = json.loads(Path(self.path).read_text())
        write_share(Path(job["folder"]), self.number, job["jobs"], job["workers"])
        return 0


class Finish(Checkpointable):
    """The last job: the index, when every share has come to its end."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> int:
        folder = Path(json.loads(Path(self.path).read_text())["folder"])
        print_converted(finish(folder), folder)
        return 0


def main(argv: list[str]) -> int:
    """`python launchers/slurm.py convert ...`; the exit status. Raises GamutError."""
    options = _parser().parse_args(argv)
    changes = resources(options) | {"nodes": 1, "gpus": 0, "cpu_tasks": 1}
    cluster = load_cluster(options.cluster, changes)
    if options.cpus_per_task is None and options.cluster is None:
        cluster = replace(cluster, cpus_per_task=WORKERS)
    if options.dry_run:
        return dry_run(options, cluster)
    if options.local:
        return run_here(argv, options, cluster)
    if shutil.which("sbatch") is None:
        raise RunError("There is no sbatch on this machine: submit from a login node of the cluster, or use --local.")
    conversion = prepare(
        options.source,
        listing_of(options),
        options.dst.absolute(),
        clips_per_shard=options.clips_per_shard,
        on_error=options.on_error,
    )
    return submit(conversion, options.jobs, cluster, _executor(options, cluster))


def submit(conversion: Conversion, jobs: int, cluster: Cluster, made: submitit.Executor) -> int:
    """Hand the array and the last job to SLURM, and say where to look. Raises RunError where it refuses."""
    jobs = min(jobs, len(conversion.roster.shards))
    folder = conversion.folder.absolute()
    path = folder / "index" / "slurm" / "job.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps({"folder": str(folder), "jobs": jobs, "workers": cluster.cpus_per_task}))
    try:
        with made.batch():
            array = [made.submit(Share(str(path), number)) for number in range(jobs)]
        number = array[0].job_id.partition("_")[0]
        # Any end of the array will do: a job that failed is named by what it has left undone.
        made.update_parameters(dependency=f"afterany:{number}")
        last = made.submit(Finish(str(path)))
    except Exception as error:  # submitit raises its own kinds, and the system's
        raise RunError(f"SLURM did not take the conversion: {error}") from error
    clips, shards = conversion.roster.clips, len(conversion.roster.shards)
    print(f"{jobs} jobs, {number}, write {clips:,} clips in {shards} shards, of which {conversion.already} are there")
    print(f"job {last.job_id} then builds the index in {folder}; output in {path.parent}")
    print(f"stop them with `scancel {number} {last.job_id}`; the same command goes on where they were")
    return 0


def dry_run(options: argparse.Namespace, cluster: Cluster) -> int:
    """Go through the listing, and show what would be submitted and written."""
    listing = listing_of(options)
    with preview(listing, options.clips_per_shard) as roster:
        jobs = min(options.jobs, len(roster.shards))
        made = _executor(options, cluster)
        made.parameters["map_count"] = jobs
        print(made.script())
        print()
        most = -(-len(roster.shards) // jobs)
        print(f"{roster.clips:,} clips in {len(roster.shards)} shards of at most {roster.clips_per_shard} clips")
        print(f"{jobs} jobs of at most {most} shards, each with {cluster.cpus_per_task} processes, and 1 after them")
        if roster.missing:
            print(f"not there: {roster.missing:,} clips that the data set lists")
        for why, count in sorted(listing.ignored.items()):
            print(f"passed over: {count:,} {why}")
    return 0


def run_here(argv: list[str], options: argparse.Namespace, cluster: Cluster) -> int:
    """Become `python -m gamut.shards convert`, which makes the same bytes. Never returns."""
    words = [sys.executable, "-m", "gamut.shards", "convert", options.source, str(options.src), str(options.dst)]
    for option, value in (("--name", options.name), ("--clips-per-shard", options.clips_per_shard)):
        words += [] if value is None else [option, str(value)]
    words += ["--on-error", options.on_error]
    words += ["--only", *options.only] if options.only else []
    words += [] if options.cpus_per_task is None else ["--workers", str(cluster.cpus_per_task)]
    sys.stdout.flush()
    os.execv(words[0], words)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launchers/slurm.py convert",
        description=__doc__,
        formatter_class=ConversionHelp,
        allow_abbrev=False,
    )
    add_conversion(parser)
    parser.add_argument(
        "--jobs", type=array_jobs, default=16, metavar="N", help="jobs of the array (default: %(default)s)"
    )
    parser.add_argument("--cpus-per-task", type=int, help=f"processes a job (default: {WORKERS})")
    add_resources(parser, dry_run="list the clips, show the sbatch script; submit and write nothing")
    return parser


def _executor(options: argparse.Namespace, cluster: Cluster) -> Executor:
    made = executor_in(options.dst.absolute() / "index" / "slurm", f"convert-{options.source}", cluster)
    made.update_parameters(array_parallelism=options.jobs)
    return made
