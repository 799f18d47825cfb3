"""python -m gamut.shards: make, check and describe shard sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gamut.commands import command
from gamut.errors import ShardError
from gamut.remote import Remote, is_remote
from gamut.remote.mirror import mirror
from gamut.shards.arguments import listing_of, parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status."""
    arguments = parser().parse_args(argv)
    commands = {"convert": _convert, "index": _index, "add": _add, "verify": _verify, "stats": _stats, "show": _show}
    return commands[arguments.command](arguments)


def _convert(arguments: argparse.Namespace) -> int:
    from gamut.shards.convert.run import convert
    from gamut.shards.report import print_converted

    listing = listing_of(arguments)
    for sentence in listing.said:
        print(sentence)
    report = convert(
        arguments.source,
        listing,
        arguments.dst,
        workers=arguments.workers,
        clips_per_shard=arguments.clips_per_shard,
        on_error=arguments.on_error,
        longest=arguments.longest,
        levels=arguments.levels,
    )
    print_converted(report, arguments.dst)
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from gamut.shards.indexing import index

    index(arguments)
    return 0


def _add(arguments: argparse.Namespace) -> int:
    from gamut.shards.add import add

    if is_remote(arguments.where):
        raise ShardError(
            f"The index of {arguments.where} cannot be changed from here: add to a copy of the set, then upload it."
        )
    added = add(Path(arguments.where), arguments.new, _remote(arguments))
    index = added.index
    print(
        f"{added.clips:,} clips in {added.shards:,} shards were added to {arguments.where}, which now has "
        f"{len(index):,} clips in {len(index.shards):,}. A run that began before goes on with the set as it was."
    )
    print(f"describe it again: python -m gamut.shards stats {arguments.where}")
    return 0


def _remote(arguments: argparse.Namespace) -> Remote:
    return Remote(s3_endpoint=arguments.s3_endpoint, allow_pipe=arguments.allow_pipe)


def _folder(arguments: argparse.Namespace) -> Path:
    """Where the set's index is on this machine."""
    return mirror(arguments.dst, _remote(arguments)) if is_remote(arguments.dst) else Path(arguments.dst)


def _verify(arguments: argparse.Namespace) -> int:
    from gamut.shards.report import print_verified
    from gamut.shards.verify import verify

    return print_verified(*verify(_folder(arguments), arguments.workers, _remote(arguments)), arguments.dst)


def _stats(arguments: argparse.Namespace) -> int:
    from gamut.shards.report import print_described
    from gamut.shards.statistics import describe

    folder = _folder(arguments)
    print_described(describe(folder, arguments.workers, _remote(arguments)), folder, as_json=arguments.json)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from gamut.shards.show import show

    shown = show(_folder(arguments), arguments.key, arguments.out, _remote(arguments))
    columns = "".join(f", {column} {value}" for column, value in shown.columns.items())
    print(f"{shown.key} in {shown.shard}: {', '.join(shown.labels) or 'no label'}{columns}")
    print(f"{shown.seconds:.2f} s, peak {shown.peak:.3f} of full scale, level {shown.level:.1f} dB")
    print(f"plotted in {shown.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
