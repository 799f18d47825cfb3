"""`index`, as it is asked for: of tars that `convert` wrote, or of third-party ones; as a whole, or a share of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gamut.errors import ShardError
from gamut.remote import Remote
from gamut.shards import adopt, rebuild
from gamut.shards.arguments import THEIRS
from gamut.shards.foreign import Taking
from gamut.shards.labels import LabelSource, read_classes
from gamut.shards.report import print_adopted
from gamut.shards.tars import Tars


def index(asked: argparse.Namespace) -> None:
    """Write the index and print what was found; asked: as `gamut.shards.arguments.add_indexing` parses it. Raises
    ShardError."""
    tars, folder, ours = places(asked)
    if ours:
        clips, absent = rebuild.rebuild(tars, folder, asked.workers)
        print(f"{clips:,} clips are indexed in {folder / 'index'}")
        if absent:
            print(f"{absent} shards of the conversion are missing; run it again to write them", file=sys.stderr)
        return
    taking = _taking(asked, tars)
    classes = read_classes(asked.classes) if asked.classes else None
    stop = asked.on_error == "stop"
    report = adopt.adopt(tars, folder, taking, classes=classes, workers=asked.workers, stop=stop, folds=asked.folds)
    print_adopted(report, folder, taking.name)


def read_share(asked: argparse.Namespace, number: int, of: int) -> None:
    """Read share `number` of `of` of the tars, for `index` to gather: any number of them at once. Raises ShardError."""
    tars, folder, ours = places(asked)
    if ours:
        rebuild.scan_share(tars, folder, number, of, asked.workers)
    else:
        stop = asked.on_error == "stop"
        adopt.scan_share(tars, folder, _taking(asked, tars), number, of, asked.workers, stop)


def places(asked: argparse.Namespace) -> tuple[Tars, Path, bool]:
    """(the tars, the folder that their index goes to, whether `convert` wrote them). Raises ShardError where options
    are given that are not of such tars."""
    tars = Tars.find(asked.where, Remote(s3_endpoint=asked.s3_endpoint, allow_pipe=asked.allow_pipe))
    if tars.is_remote and asked.out is None:
        raise ShardError(f"The index of {asked.where} must go to a folder on this machine: give --out FOLDER.")
    ours = adopt.ours(tars)
    given = [f"--{name.replace('_', '-')}" for name, usual in THEIRS.items() if getattr(asked, name) != usual]
    if ours and given:
        raise ShardError(
            f"The tars in {asked.where} were written by `convert` and already hold what {', '.join(given)} "
            "would set: leave it out. It is for third-party tars."
        )
    return tars, asked.out or Path(asked.where), ours


def _taking(asked: argparse.Namespace, tars: Tars) -> Taking:
    return Taking(
        name=asked.name or tars.set_name,
        labels=LabelSource.parse(asked.labels),
        fast=asked.fast,
        largest=asked.largest_mb << 20,
        longest=asked.longest,
    )
