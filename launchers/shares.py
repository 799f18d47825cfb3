"""`verify` or `stats` of a large shard set as a SLURM array: each job reads its share of the shards, a last one reads
what is left and prints what all have found.

Examples:
    python launchers/slurm.py verify shards/audioset --jobs 64 --cpus-per-task 8
    python launchers/slurm.py stats shards/audioset --jobs 64 --partition short
    python launchers/slurm.py stats shards/audioset --local
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gamut.commands import parser_of
from gamut.errors import ShardError
from launchers.convert import WORKERS, cluster_of
from launchers.options import add_jobs, add_resources, become


def main(argv: list[str]) -> int:
    """`python launchers/slurm.py verify|stats ...`; the exit status. Raises GamutError."""
    from gamut.remote import is_remote

    options = _parser().parse_args(argv)
    if is_remote(options.dst):
        raise ShardError(
            f"The jobs of an array meet in the folder of the set's index, and {options.dst} is remote: run "
            f"`python -m gamut.shards {options.what} {options.dst}` on one machine."
        )
    if options.local:
        workers = [] if options.cpus_per_task is None else ["--workers", str(options.cpus_per_task)]
        become("-m", "gamut.shards", options.what, options.dst, *workers)

    from gamut.shards.index import Index
    from launchers import arrays
    from launchers.executor import require_sbatch

    if not options.dry_run:
        require_sbatch()
    index = Index.open(options.dst, tars=False, intact=False)
    cluster = cluster_of(options)
    jobs, folder = max(1, min(options.jobs, len(index.shards))), Path(options.dst).absolute()
    place = folder / "index" / "slurm"
    executor = arrays.array_executor(place, f"{options.what}-shards", cluster, jobs)
    if options.dry_run:
        print(executor.script(jobs))
        most = -(-len(index.shards) // jobs)
        print(f"\n{jobs} jobs of at most {most} shards, each with {cluster.cpus_per_task} processes, and 1 after them")
        return 0
    told = {"what": options.what, "folder": str(folder), "workers": cluster.cpus_per_task}
    array, after = arrays.submit(executor, "shares", place, jobs, told)
    print(f"{jobs} jobs, {array}, read {len(index):,} clips in {len(index.shards)} shards")
    print(f"job {after} then says what was found; output in {place}")
    print(f"stop them with `scancel {array} {after}`; the same command resumes")
    return 0


def share(told: dict[str, Any], number: int) -> None:
    """What job `number` of the array does."""
    from gamut.shards.statistics import hear_share
    from gamut.shards.verify import verify_share

    read = verify_share if told["what"] == "verify" else hear_share
    read(Path(told["folder"]), number, told["jobs"], told["workers"])


def last(told: dict[str, Any]) -> None:
    """The last job. Raises ShardError where `verify` found damage, so that the job counts as failed."""
    from gamut.shards.report import print_described, print_verified
    from gamut.shards.statistics import describe_in_shares
    from gamut.shards.verify import verify

    folder = Path(told["folder"])
    if told["what"] == "stats":
        print_described(describe_in_shares(folder, told["workers"]), folder)
        return
    index, damages = verify(folder, told["workers"], in_shares=True)
    if print_verified(index, damages, folder):
        raise ShardError(f"{folder} is damaged in {len(damages)} places, which are listed in this job's output.")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("submit", __doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("verify", "stats"))
    parser.add_argument("dst", metavar="DST", help="folder of the set's index, which all nodes see")
    add_jobs(parser, 16)
    parser.add_argument("--cpus-per-task", type=int, help=f"processes a job (default: {WORKERS})")
    add_resources(parser, dry_run="show the sbatch script; submit and write nothing")
    return parser
