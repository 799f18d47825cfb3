"""`verify`, `stats` or `index` of a large shard set as a SLURM array: each job reads its share of the shards, a last
one reads what is left, does what needs all of them, and prints what was found.

Examples:
    python launchers/slurm.py verify shards/audioset --jobs 64 --cpus-per-task 8
    python launchers/slurm.py stats shards/audioset --jobs 64 --partition short
    python launchers/slurm.py stats shards/audioset --local
    python launchers/slurm.py index /archive/fsd50k-tars --out shards/fsd50k --jobs 64
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gamut.commands import parser_of
from gamut.errors import ShardError
from gamut.shards.arguments import THEIRS, add_indexing
from launchers.convert import WORKERS, cluster_of
from launchers.options import add_jobs, add_resources, become

INDEX = "index"


def main(argv: list[str]) -> int:
    """`python launchers/slurm.py verify|stats|index ...`; the exit status. Raises GamutError."""
    what, options = argv[0], _parser(argv[0]).parse_args(argv[1:])
    words = _words(options) if what == INDEX else [options.where]
    if options.local:
        become("-m", "gamut.shards", what, *words, *_workers(options.cpus_per_task))

    from launchers.executor import require_sbatch

    if not options.dry_run:
        require_sbatch()
    shards, folder, all_of_them = _tars(options) if what == INDEX else _set(options, what)
    cluster = cluster_of(options)
    jobs, place = max(1, min(options.jobs, shards)), folder / "index" / "slurm"

    from launchers import arrays

    executor = arrays.array_executor(place, f"{what}-shards", cluster, jobs)
    if options.dry_run:
        print(executor.script(jobs))
        most = -(-shards // jobs)
        print(f"\n{jobs} jobs of at most {most} shards, each with {cluster.cpus_per_task} processes, and 1 after them")
        return 0
    told = {"what": what, "folder": str(folder), "words": words, "workers": cluster.cpus_per_task}
    array, after = arrays.submit(executor, "shares", place, jobs, told)
    print(f"{jobs} jobs, {array}, read {all_of_them}")
    print(f"job {after} then says what was found; output in {place}")
    print(f"stop them with `scancel {array} {after}`; the same command resumes")
    return 0


def share(told: dict[str, Any], number: int) -> None:
    """What job `number` of the array does."""
    from gamut.shards.indexing import read_share
    from gamut.shards.statistics import hear_share
    from gamut.shards.verify import verify_share

    if told["what"] == INDEX:
        read_share(_asked(told), number, told["jobs"])
        return
    read = verify_share if told["what"] == "verify" else hear_share
    read(Path(told["folder"]), number, told["jobs"], told["workers"])


def last(told: dict[str, Any]) -> None:
    """The last job. Raises ShardError where `verify` found damage, so that the job counts as failed."""
    from gamut.shards.indexing import index as build
    from gamut.shards.report import print_described, print_verified
    from gamut.shards.statistics import describe_in_shares
    from gamut.shards.verify import verify

    folder = Path(told["folder"])
    if told["what"] == INDEX:
        build(_asked(told))
        return
    if told["what"] == "stats":
        print_described(describe_in_shares(folder, told["workers"]), folder)
        return
    index, damages = verify(folder, told["workers"], in_shares=True)
    if print_verified(index, damages, folder):
        raise ShardError(f"{folder} is damaged in {len(damages)} places, which are listed in this job's output.")


def _set(options: argparse.Namespace, what: str) -> tuple[int, Path, str]:
    """(shards, folder of the index, both in words) of the set that is to be read."""
    from gamut.remote import is_remote
    from gamut.shards.index import Index

    if is_remote(options.where):
        raise ShardError(
            f"The jobs of an array meet in the folder of the set's index, and {options.where} is remote: run "
            f"`python -m gamut.shards {what} {options.where}` on one machine."
        )
    index = Index.open(options.where, tars=False, intact=False)
    shards = len(index.shards)
    return shards, Path(options.where).absolute(), f"{len(index):,} clips in {shards:,} shards"


def _tars(options: argparse.Namespace) -> tuple[int, Path, str]:
    """(tars, folder that their index goes to, both in words) of what is to be indexed."""
    from gamut.shards.indexing import places

    tars, folder, _ = places(options)
    tars.seen_from(folder)
    return len(tars.names), folder.absolute(), f"{len(tars.names):,} tars"


def _asked(told: dict[str, Any]) -> argparse.Namespace:
    """The arguments of the `index` that was submitted, as this job takes them."""
    from gamut.shards.arguments import parser

    return parser().parse_args([INDEX, *told["words"], *_workers(told["workers"])])


def _words(options: argparse.Namespace) -> list[str]:
    """The arguments of `python -m gamut.shards index` that make the same index, from any folder."""
    from gamut.remote import is_remote

    words = [options.where if is_remote(options.where) else str(Path(options.where).absolute())]
    words += [] if options.out is None else ["--out", str(options.out.absolute())]
    for name, usual in THEIRS.items():
        value = getattr(options, name)
        if value != usual:
            words += [f"--{name.replace('_', '-')}"]
            words += [] if value is True else [_text(name, value)]
    words += ["--s3-endpoint", options.s3_endpoint] if options.s3_endpoint else []
    return words + ["--allow-pipe"] * options.allow_pipe


def _text(name: str, value: Any) -> str:
    if name == "longest":
        return f"{value.seconds / 3600:g}"
    return str(value.absolute()) if name == "classes" else str(value)


def _workers(number: int | None) -> list[str]:
    return [] if number is None else ["--workers", str(number)]


def _parser(what: str) -> argparse.ArgumentParser:
    parser = parser_of(f"submit {what}", __doc__, allow_abbrev=False)
    if what == INDEX:
        add_indexing(parser)
    else:
        parser.add_argument("where", metavar="DST", help="folder of the set's index, which all nodes see")
    add_jobs(parser, 16)
    parser.add_argument("--cpus-per-task", type=int, help=f"processes a job (default: {WORKERS})")
    add_resources(parser, dry_run="show the sbatch script; submit and write nothing")
    return parser
