"""A conversion as a SLURM array: each job writes its share of the shards, and a last one builds the index.

Examples:
    python launchers/slurm.py convert audioset /data/AudioSet shards/audioset --jobs 64 --cpus-per-task 8
    python launchers/slurm.py convert audioset /data/AudioSet shards/audioset --jobs 64 --dry-run
    python launchers/slurm.py convert vggsound /data/vggsound shards/vggsound --local
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamut.audio.longest import CLIP
from gamut.commands import parser_of
from gamut.numbers import RATE
from gamut.shards.arguments import ConversionHelp, add_conversion, listing_of
from launchers.options import add_jobs, add_resources, become, resources

if TYPE_CHECKING:
    from gamut.estimate.standin import Like
    from launchers.cluster import Cluster

# Seconds of sound that a core decodes, resamples, writes as FLAC and adds to the statistics in one. On a busy EPYC 480
# of WAV of 44.1 kHz were measured; compressed files take longer.
CONVERTED = 350.0
WORKERS = 8  # processes of a job, unless --cpus-per-task says otherwise


def main(argv: list[str]) -> int:
    """`python launchers/slurm.py convert ...`; the exit status. Raises GamutError."""
    options = _parser().parse_args(argv)
    if options.local:
        become("-m", "gamut.shards", "convert", *_words(options))

    if options.dry_run:
        return dry_run(options, cluster_of(options))
    submit(options)
    return 0


def submit_part(argv: list[str]) -> tuple[str, Path]:
    """As the first of several submissions: (the last job's number, the shards' folder). Raises GamutError."""
    options = _parser().parse_args(argv)
    return submit(options), options.dst.absolute()


def submit(options: argparse.Namespace) -> str:
    """Submit the array and the job after it, print where to look; the number of the latter. Raises GamutError."""
    from gamut.shards.convert.run import prepare
    from launchers import arrays
    from launchers.executor import require_sbatch

    cluster = cluster_of(options)
    require_sbatch()
    listing = listing_of(options)
    for sentence in listing.said:
        print(sentence)
    conversion = prepare(
        options.source,
        listing,
        options.dst.absolute(),
        clips_per_shard=options.clips_per_shard,
        on_error=options.on_error,
        longest=options.longest,
        levels=options.levels,
    )
    clips, shards = conversion.manifest.clips, len(conversion.manifest.shards)
    jobs, folder = min(options.jobs, shards), _folder(options)
    told = {"folder": str(conversion.folder.absolute()), "workers": cluster.cpus_per_task}
    array, after = arrays.submit(_executor(options, cluster, jobs), "convert", folder, jobs, told)
    print(f"{jobs} jobs, {array}, write {clips:,} clips in {shards} shards, {conversion.already} of them already there")
    print(f"job {after} then builds the index in {conversion.folder}; output in {folder}")
    print(f"stop them with `scancel {array} {after}`; the same command resumes")
    return after


def cluster_of(options: argparse.Namespace) -> Cluster:
    """What a job without a GPU asks for. Raises RecipeError."""
    from launchers.cluster import load_cluster

    cluster = load_cluster(options.cluster, resources(options) | {"nodes": 1, "gpus": 0, "cpu_tasks": 1})
    if options.cpus_per_task is None and options.cluster is None:
        cluster = replace(cluster, cpus_per_task=WORKERS)
    return cluster


def share(told: dict[str, Any], number: int) -> None:
    """What job `number` of the array does."""
    from gamut.shards.convert.run import write_share

    write_share(Path(told["folder"]), number, told["jobs"], told["workers"])


def last(told: dict[str, Any]) -> None:
    """The last job: builds the index and the statistics when every share has ended."""
    from gamut.shards.convert.run import finish
    from gamut.shards.report import print_converted

    folder = Path(told["folder"])
    print_converted(finish(folder, told["workers"]), folder)


def dry_run(options: argparse.Namespace, cluster: Cluster) -> int:
    """Iterate over the listing and show what would be submitted and written."""
    from gamut.estimate.standin import LIKE  # here, as whatever takes long to import
    from gamut.shards.convert.run import preview

    listing = listing_of(options)
    with preview(listing, options.clips_per_shard) as manifest:
        jobs = min(options.jobs, len(manifest.shards))
        print(_executor(options, cluster, jobs).script(jobs))
        print()
        most = -(-len(manifest.shards) // jobs)
        print(f"{manifest.clips:,} clips in {len(manifest.shards)} shards of at most {manifest.clips_per_shard} clips")
        print(f"{jobs} jobs of at most {most} shards, each with {cluster.cpus_per_task} processes, and 1 after them")
        if options.source in LIKE:
            print(_forecast(manifest.clips, LIKE[options.source], jobs, cluster.cpus_per_task))
        if manifest.missing:
            print(f"missing: {manifest.missing:,} clips that the data set lists")
        for sentence in listing.said:
            print(sentence)
        for why, count in sorted(listing.passed_over().items()):
            print(f"passed over: {count:,} {why}")
    return 0


def _forecast(clips: int, like: Like, jobs: int, processes: int) -> str:
    """What the jobs take and write, by lengths like the data set's."""
    from gamut.estimate.standin import FLAC

    seconds = clips * like.seconds
    minutes = seconds / CONVERTED / (jobs * processes) / 60
    size = seconds * RATE * 2 * FLAC / 1e9
    return (
        f"about {minutes:,.1f} minutes a job and {size:,.1f} GB in all (an estimate: clips of {like.seconds:.1f} s "
        f"each, of which a core converts {CONVERTED / like.seconds:,.0f} a second if the disk is fast enough)"
    )


def _words(options: argparse.Namespace) -> list[str]:
    """The arguments of `python -m gamut.shards convert` that write the same bytes on this machine."""
    words = [options.source, str(options.src), str(options.dst)]
    for option, value in (("--name", options.name), ("--clips-per-shard", options.clips_per_shard)):
        words += [] if value is None else [option, str(value)]
    words += ["--on-error", options.on_error]
    words += ["--longest", f"{options.longest.seconds / 3600:g}"] if options.longest != CLIP else []
    words += ["--levels", options.levels] if options.levels != "refuse" else []
    words += ["--events", str(options.events)] if options.events else []
    words += [] if options.folds is None else ["--folds", str(options.folds)]
    words += ["--only", *options.only] if options.only else []
    return words + ([] if options.cpus_per_task is None else ["--workers", str(options.cpus_per_task)])


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("submit convert", __doc__, formatter_class=ConversionHelp, allow_abbrev=False)
    add_conversion(parser)
    add_jobs(parser, 16)
    parser.add_argument("--cpus-per-task", type=int, help=f"processes a job (default: {WORKERS})")
    add_resources(parser, dry_run="list the clips, show the sbatch script; submit and write nothing")
    return parser


def _folder(options: argparse.Namespace) -> Path:
    return options.dst.absolute() / "index" / "slurm"


def _executor(options: argparse.Namespace, cluster: Cluster, jobs: int) -> Any:
    from launchers.arrays import array_executor

    return array_executor(_folder(options), f"convert-{options.source}", cluster, jobs)
