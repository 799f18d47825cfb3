"""python -m gamut.shards: make, check and describe shard sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gamut.errors import ShardError, command
from gamut.remote import Remote, is_remote
from gamut.remote.mirror import mirror
from gamut.shards.convert import SOURCES, Listing
from gamut.shards.convert.run import Report, convert
from gamut.shards.pool import cores
from gamut.shards.write import Quarantined

if TYPE_CHECKING:
    from gamut.shards.adopt import Report as Adopted

EXAMPLE = """examples:
  python -m gamut.shards convert esc50 ~/ESC-50-master shards/esc50
  python -m gamut.shards convert folder recordings/ shards/birds --workers 8 --on-error stop
  python -m gamut.shards convert audioset /data/AudioSet shards/audioset --only as-20k evaluation
  python -m gamut.shards stats shards/esc50
  python -m gamut.shards show shards/esc50 1-100032-A-0 --out dog.png
  python -m gamut.shards verify shards/esc50
  python -m gamut.shards index shards/esc50
  python -m gamut.shards index /archive/fsd50k-tars --out shards/fsd50k
  python -m gamut.shards index s3://bucket/fsd50k --out shards/fsd50k
"""


def parser() -> argparse.ArgumentParser:
    """Of all subcommands."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m gamut.shards",
        description="Shard sets: plain WebDataset tars of 16 kHz mono FLAC, with an index beside them.",
        epilog=EXAMPLE,
        formatter_class=raw,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=f"example:\n  {example}",
            formatter_class=raw,
        )  # fmt: skip

    make = add(
        "convert",
        "write a data set as shards; run again after a kill, it goes on where it was",
        "python -m gamut.shards convert esc50 ~/ESC-50-master shards/esc50 --workers 4",
    )
    add_conversion(make)
    renew = add(
        "index",
        "index tars: ours anew from the tars themselves, those of others in place, here or remote",
        "python -m gamut.shards index /archive/fsd50k-tars --out shards/fsd50k --labels json:tags\n"
        "  python -m gamut.shards index https://host/set/shard-{000000..000099}.tar --out shards/set",
    )
    renew.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write the index here; data=FOLDER then names the set (default: where the tars lie)",
    )
    theirs = renew.add_argument_group("for tars that others made")
    theirs.add_argument("--name", help="name of the set, part of every clip id (default: the folder's name)")
    theirs.add_argument(
        "--labels",
        default="auto",
        metavar="FROM",
        help="json (the field labels, label, target or tags), json:FIELD, cls, txt (a label a line), none, "
        "or auto: the first of json, cls, txt that is there (default)",
    )
    theirs.add_argument(
        "--classes", type=Path, metavar="FILE", help="the class table, a name a line (default: from the labels seen)"
    )
    theirs.add_argument(
        "--fast", action="store_true", help="trust headers for the lengths, instead of decoding every clip once"
    )
    theirs.add_argument(
        "--largest-mb", type=_positive, default=256, metavar="N", help="largest clip to take (default: %(default)s)"
    )
    theirs.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="skip",
        help="a damaged clip or tar: leave it out and list it in index/quarantine.json (default), or stop",
    )
    check = add(
        "verify",
        "compare every byte with the index, and decode every clip; exit status 1 and a list if anything is damaged",
        "python -m gamut.shards verify shards/esc50",
    )
    describe = add(
        "stats",
        "show clips, hours, rates, lengths, classes and what each way of batching wastes; write it, with mean and std "
        "of the log-mel, to DST/index/statistics.json, and a picture to DST/index/statistics.png",
        "python -m gamut.shards stats shards/esc50",
    )
    renew.add_argument(
        "where", metavar="DST", help="folder of the tars; or https://.../x-{000..099}.tar, s3://bucket/prefix, pipe:..."
    )
    describe.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    draw = add(
        "show",
        "draw the waveform and log-mel of a clip",
        "python -m gamut.shards show shards/esc50 1-100032-A-0 --out dog.png",
    )
    draw.add_argument("dst", metavar="DST", type=Path, help="folder of the shards")
    draw.add_argument("key", metavar="KEY", help="the clip's key, or SHARD/KEY where several shards have it")
    draw.add_argument("--out", metavar="PNG", type=Path, help="default: KEY.png in this folder")
    for one in (check, describe):
        one.add_argument("dst", metavar="DST", help="the set: a folder, or http(s)://, s3:// or pipe: with an index")
    for one in (renew, check, describe):
        far = one.add_argument_group("for remote tars")
        far.add_argument("--s3-endpoint", default="", metavar="URL", help="S3 server (default: AWS)")
        far.add_argument("--allow-pipe", action="store_true", help="run the command that gives the tars")
    for one in (make, renew, check, describe):
        one.add_argument(
            "--workers",
            type=_positive,
            default=cores(),
            metavar="N",
            help="processes (default: the cores, %(default)s)",
        )
    return top


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status."""
    arguments = parser().parse_args(argv)
    commands = {"convert": _convert, "index": _index, "verify": _verify, "stats": _stats, "show": _show}
    return commands[arguments.command](arguments)


def add_conversion(make: argparse.ArgumentParser) -> None:
    """The arguments that say what is converted, and into what."""
    layouts = "; ".join(f"{name}: {source.layout}" for name, source in SOURCES.items())
    make.add_argument("source", choices=SOURCES, metavar="|".join(SOURCES), help=layouts)
    make.add_argument("src", metavar="SRC", type=Path, help="folder of the data set; a file will do for csv, ast-json")
    make.add_argument("dst", metavar="DST", type=Path, help="folder of the shards; made if it is not there")
    make.add_argument("--name", help="name of the set, part of every clip id (default: esc50, or SRC's folder name)")
    make.add_argument("--only", nargs="+", metavar="SPLIT", default=[], help="the clips of these splits alone")
    make.add_argument("--clips-per-shard", type=_positive, metavar="N", help="default: 64 shards of 50 to 1,000 clips")
    make.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="skip",
        help="an unusable file: skip it and list it in DST/index/quarantine.json (default), or stop",
    )


def listing_of(arguments: argparse.Namespace) -> Listing:
    """What is to be converted. Raises ShardError where SRC or DST cannot be what they are said to be."""
    src, dst = arguments.src, arguments.dst
    if not src.is_dir() and not (src.is_file() and arguments.source in ("csv", "ast-json")):
        raise ShardError(f"{src} is not a folder.")
    if dst.exists() and (not dst.is_dir() or dst.resolve() == src.resolve()):
        raise ShardError(f"{dst} cannot take the shards: it is {'SRC itself' if dst.is_dir() else 'not a folder'}.")
    listing = SOURCES[arguments.source].list(src)
    listing = listing.only(arguments.only) if arguments.only else listing
    return listing if arguments.name is None else listing.renamed(arguments.name)


def _convert(arguments: argparse.Namespace) -> int:
    report = convert(
        arguments.source,
        listing_of(arguments),
        arguments.dst,
        workers=arguments.workers,
        clips_per_shard=arguments.clips_per_shard,
        on_error=arguments.on_error,
    )
    print_report(report, arguments.dst)
    return 0


def print_report(report: Report, dst: Path) -> None:
    """What a person is told at the end of a conversion."""
    print(
        f"{report.clips:,} clips, {report.seconds / 3600:.2f} h, in {report.shards} shards "
        f"({report.already} of them were there already), {report.bytes / 1e6:,.1f} MB, in {dst}"
    )
    if report.saturated:
        print(f"peaks over full scale were held to it in {len(report.saturated):,} clips ({_some(report.saturated)})")
    if report.ignored:
        print(f"passed over: {', '.join(f'{count:,} {why}' for why, count in sorted(report.ignored.items()))}")
    if report.missing:
        print(f"not there: {report.missing:,} clips that the data set lists, in {dst / 'index' / 'missing.csv'}")
    _print_quarantined(report.quarantined, report.reasons, dst)
    print(f"next: python -m gamut.shards stats {dst}")


def _print_quarantined(quarantined: Sequence[Quarantined], reasons: dict[str, int], folder: Path) -> None:
    if not quarantined:
        return
    counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    print(f"left out {len(quarantined):,} unusable files: {counted}")
    for one in quarantined[:10]:
        print(f"  {one.reason:11} {one.file}")
    print(f"  all of them, and why: {folder / 'index' / 'quarantine.json'}")


def _some(keys: dict[str, int]) -> str:
    return ", ".join(list(keys)[:3]) + (", ..." if len(keys) > 3 else "")


def _index(arguments: argparse.Namespace) -> int:
    from gamut.shards.adopt import adopt, ours
    from gamut.shards.foreign import Taking
    from gamut.shards.labels import LabelSource, read_classes
    from gamut.shards.rebuild import rebuild
    from gamut.shards.tars import Tars

    tars = Tars.find(arguments.where, _remote(arguments))
    if tars.is_remote and arguments.out is None:
        raise ShardError(f"The index of {arguments.where} needs a folder on this machine: --out FOLDER.")
    folder = arguments.out or Path(arguments.where)
    if ours(tars):
        clips, absent = rebuild(tars, folder, arguments.workers)
        print(f"{clips:,} clips are indexed in {folder / 'index'}")
        if absent:
            print(f"{absent} shards of the conversion are not there; run it again to write them", file=sys.stderr)
        return 0
    report = adopt(
        tars,
        folder,
        Taking(
            name=arguments.name or tars.set_name,
            labels=LabelSource.parse(arguments.labels),
            fast=arguments.fast,
            largest=arguments.largest_mb << 20,
        ),
        classes=read_classes(arguments.classes) if arguments.classes else None,
        workers=arguments.workers,
        stop=arguments.on_error == "stop",
    )
    _print_adopted(report, folder)
    return 0


def _remote(arguments: argparse.Namespace) -> Remote:
    return Remote(s3_endpoint=arguments.s3_endpoint, allow_pipe=arguments.allow_pipe)


def _folder(arguments: argparse.Namespace) -> Path:
    """Where the set's index is on this machine."""
    return mirror(arguments.dst, _remote(arguments)) if is_remote(arguments.dst) else Path(arguments.dst)


def _print_adopted(report: Adopted, folder: Path) -> None:
    codecs = ", ".join(f"{count:,} {codec}" for codec, count in report.codecs.items())
    print(
        f"{report.clips:,} clips, {report.seconds / 3600:.2f} h, in {report.shards} tars ({codecs}); "
        f"{report.classes:,} classes, {report.unlabelled:,} clips without a label; indexed in {folder / 'index'}"
    )
    if report.saturated:
        print(f"peaks over full scale are held to it in {len(report.saturated):,} clips ({_some(report.saturated)})")
    if report.ignored:
        print(f"passed over: {', '.join(f'{count:,} {what}' for what, count in report.ignored.items())}")
    for message in report.damaged.values():
        print(f"damaged: {message} The clips before that are indexed.", file=sys.stderr)
    _print_quarantined(report.quarantined, report.reasons, folder)
    print(f"next: python -m gamut.shards stats {folder}")


def _verify(arguments: argparse.Namespace) -> int:
    from gamut.shards.verify import remedies, verify

    index, damages = verify(_folder(arguments), arguments.workers, _remote(arguments))
    for damage in damages:
        print(f"{damage.place}: {damage.what}")
    if damages:
        print(f"{len(damages)} damages in {arguments.dst}. What to do:", file=sys.stderr)
        for remedy in remedies(index, damages):
            print(f"  {remedy}", file=sys.stderr)
        return 1
    print(f"{len(index):,} clips in {len(index.shards)} shards are as they were written")
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from gamut.shards.report import print_statistics
    from gamut.shards.statistics import describe

    folder = _folder(arguments)
    statistics = describe(folder, arguments.workers, _remote(arguments))
    place = folder / "index"
    if arguments.json:
        print((place / "statistics.json").read_text())
        return 0
    print_statistics(statistics)
    print(f"written to {place / 'statistics.json'}, drawn in {place / 'statistics.png'}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from gamut.shards.show import show

    shown = show(arguments.dst, arguments.key, arguments.out)
    columns = "".join(f", {column} {value}" for column, value in shown.columns.items())
    print(f"{shown.key} in {shown.shard}: {', '.join(shown.labels) or 'no label'}{columns}")
    print(f"{shown.seconds:.2f} s, peak {shown.peak:.3f} of full scale, level {shown.level:.1f} dB")
    print(f"drawn in {shown.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
