"""The command line of python -m gamut.shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from gamut.audio.longest import CLIP, Longest
from gamut.commands import as_typed, parser_of, positive
from gamut.errors import RecipeError, ShardError
from gamut.shards.convert import SOURCES, Listing
from gamut.shards.convert.events import with_events
from gamut.shards.convert.folds import with_folds
from gamut.shards.folds import FOLDS, folds_for
from gamut.shards.pool import AUTO, cores

# The options of `index` for third-party tars, and their defaults.
THEIRS = {
    "name": None,
    "labels": "auto",
    "classes": None,
    "fast": False,
    "largest_mb": 256,
    "longest": CLIP,
    "on_error": "skip",
    "folds": None,
}

FOLDS_HELP = (
    f"add a column `fold`, 1 to N, by hash, each class spread evenly (default: {FOLDS} for labelled sets without a "
    "column split or fold; 0: none)"
)

EXAMPLE = """examples:
  python -m gamut.shards convert esc50 ~/ESC-50-master shards/esc50
  python -m gamut.shards convert folder recordings/ shards/birds --workers 8 --folds 10 --on-error stop
  python -m gamut.shards convert audioset /data/AudioSet shards/audioset --only as-20k evaluation
  python -m gamut.shards stats shards/esc50
  python -m gamut.shards show shards/esc50 1-100032-A-0 --out dog.png
  python -m gamut.shards verify shards/esc50
  python -m gamut.shards index shards/esc50
  python -m gamut.shards add shards/birds shards/more-birds
  python -m gamut.shards index /archive/fsd50k-tars --out shards/fsd50k
  python -m gamut.shards index s3://bucket/fsd50k --out shards/fsd50k
"""


class ConversionHelp(argparse.RawDescriptionHelpFormatter):
    """Lists the data sets, including those of plugins, and loads them only when help is asked for."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.dest != "source":
            return super()._get_help_string(action)
        return "; ".join(f"{name}: {SOURCES[name].expects}" for name in SOURCES).replace("%", "%%")


def parser() -> argparse.ArgumentParser:
    """Of all subcommands."""
    raw = argparse.RawDescriptionHelpFormatter
    about = "Shard sets: plain WebDataset tars of 16 kHz mono FLAC, with an index beside them."
    top = parser_of("shards", about, EXAMPLE)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=as_typed(f"example:\n  {example}"),
            formatter_class=ConversionHelp if name == "convert" else raw,
        )  # fmt: skip

    make = add(
        "convert",
        "write a data set as shards; run again after a kill, it resumes where it stopped",
        "python -m gamut.shards convert esc50 ~/ESC-50-master shards/esc50 --workers 4",
    )
    add_conversion(make)
    renew = add(
        "index",
        "rebuild the index of converted tars, or index third-party tars in place, local or remote",
        "python -m gamut.shards index /archive/fsd50k-tars --out shards/fsd50k --labels json:tags\n"
        "  python -m gamut.shards index https://host/set/shard-{000000..000099}.tar --out shards/set",
    )
    add_indexing(renew)
    more = add(
        "add",
        "append sets of the same kind to a set; no byte that a run reads by now is changed",
        "python -m gamut.shards convert csv new.csv shards/new --name birds\n"
        "  python -m gamut.shards add shards/birds shards/new",
    )
    more.add_argument("where", metavar="SET", help="folder of the set's index")
    more.add_argument(
        "new", metavar="NEW", nargs="+", type=Path, help="folder of another, of the same name and columns"
    )
    check = add(
        "verify",
        "compare every byte with the index and decode every clip; lists all damage, with exit status 1 if there is any",
        "python -m gamut.shards verify shards/esc50",
    )
    describe = add(
        "stats",
        "show clips, hours, rates, lengths, classes and what each way of batching wastes; write this and the log-mel's "
        "mean and std to DST/index/statistics.json, with a picture in DST/index/statistics.png",
        "python -m gamut.shards stats shards/esc50",
    )
    describe.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    picture = add(
        "show",
        "plot the waveform and log-mel of a clip",
        "python -m gamut.shards show shards/esc50 1-100032-A-0 --out dog.png",
    )
    for one in (check, describe, picture):
        one.add_argument("dst", metavar="DST", help="the set: a folder, or http(s)://, s3:// or pipe: with an index")
    picture.add_argument("key", metavar="KEY", help="the clip's key, or SHARD/KEY where several shards have it")
    picture.add_argument("--out", metavar="PNG", type=Path, help="default: KEY.png in this folder")
    for one in (more, check, describe, picture):
        _add_remote(one)
    for one in (make, renew, check, describe):
        one.add_argument(
            "--workers",
            type=positive,
            default=AUTO,
            metavar="N",
            help=f"processes (default: the cores, {cores()}, for what takes longer than a few seconds)",
        )
    return top


def add_conversion(make: argparse.ArgumentParser) -> None:
    """The arguments that say what is converted, and into what."""
    make.add_argument("source", type=_source, metavar="DATASET", help="its layout")  # `ConversionHelp` says more
    make.add_argument(
        "src", metavar="SRC", type=Path, help="folder of the data set, or a file where its layout says so"
    )
    make.add_argument("dst", metavar="DST", type=Path, help="folder of the shards; created if missing")
    make.add_argument("--name", help="name of the set, part of every clip id (default: esc50, or SRC's folder name)")
    make.add_argument("--only", nargs="+", metavar="SPLIT", default=[], help="only the clips of these splits")
    make.add_argument(
        "--events",
        type=Path,
        metavar="FILE",
        help="strong labels: a CSV or TSV with filename, onset, offset (seconds) and event_label, an event a row",
    )
    make.add_argument("--folds", type=_folds, metavar="N", help=FOLDS_HELP)
    make.add_argument("--clips-per-shard", type=positive, metavar="N", help="default: 64 shards of 50 to 1,000 clips")
    _add_longest(make)
    make.add_argument(
        "--levels",
        choices=("refuse", "scale"),
        default="refuse",
        help="a clip with over 5 %% of its samples beyond full scale, as of floats in the range of int16: an unusable "
        "file (default), or divided by a power of two (32,768 for those)",
    )
    make.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="skip",
        help="an unusable file: skip it and list it in DST/index/quarantine.json (default), or stop",
    )


def add_indexing(make: argparse.ArgumentParser) -> None:
    """The arguments that say what is indexed, and how."""
    make.add_argument(
        "where", metavar="DST", help="folder of the tars; or https://.../x-{000..099}.tar, s3://bucket/prefix, pipe:..."
    )
    make.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write the index here, and name the set with data=FOLDER (default: the folder of the tars)",
    )
    theirs = make.add_argument_group("for third-party tars")
    theirs.add_argument("--name", help="name of the set, part of every clip id (default: the folder's name)")
    theirs.add_argument(
        "--labels",
        metavar="FROM",
        help="json (the field labels, label, target or tags), json:FIELD, cls, txt (a label a line), none, "
        "or auto: the first of json, cls, txt that is there (default)",
    )
    theirs.add_argument(
        "--classes", type=Path, metavar="FILE", help="the class table, a name a line (default: from the labels seen)"
    )
    theirs.add_argument(
        "--fast", action="store_true", help="take lengths from the headers instead of decoding every clip once"
    )
    theirs.add_argument("--folds", type=_folds, metavar="N", help=FOLDS_HELP)
    theirs.add_argument("--largest-mb", type=positive, metavar="N", help="largest clip to take (default: %(default)s)")
    _add_longest(theirs)
    theirs.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        help="a damaged clip or tar: leave it out and list it in index/quarantine.json (default), or stop",
    )
    make.set_defaults(**THEIRS)
    _add_remote(make)


def _add_remote(parser: argparse.ArgumentParser) -> None:
    far = parser.add_argument_group("for remote tars")
    far.add_argument("--s3-endpoint", default="", metavar="URL", help="S3 server (default: AWS)")
    far.add_argument("--allow-pipe", action="store_true", help="allow running the command that outputs the tars")


def _add_longest(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--longest",
        type=Longest.of_hours,
        default=CLIP,
        metavar="HOURS",
        help="longest clip to take; a longer one is an unusable file (default: %(default)s)",
    )


def listing_of(arguments: argparse.Namespace) -> Listing:
    """What is to be converted. Raises ShardError where SRC or DST cannot be used."""
    src, dst = arguments.src, arguments.dst
    source = SOURCES[arguments.source]()
    if not src.is_dir() and not (src.is_file() and source.of_file):
        raise ShardError(f"{src} is not a folder.")
    if dst.exists() and (not dst.is_dir() or dst.resolve() == src.resolve()):
        raise ShardError(
            f"The shards cannot be written to {dst}: it is {'SRC itself' if dst.is_dir() else 'not a folder'}."
        )

    def made() -> Listing:
        listing = source.list(src)
        if arguments.events is not None:
            listing = with_events(listing, arguments.events)
        listing = listing.only(arguments.only) if arguments.only else listing
        return listing if arguments.name is None else listing.renamed(arguments.name)

    listing = made()
    folds = folds_for(listing.columns, listing.labels, dst, arguments.folds, source.splits)
    return with_folds(made, folds) if folds else listing


def _folds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 1 or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of folds: 2 to 1000, or 0 for none")
    return int(text)


def _source(name: str) -> str:
    try:
        SOURCES[name]
    except RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name
