"""What a conversion and an indexing say when they are done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from gamut.shards.adopt import Report as Adopted
from gamut.shards.convert.run import Report as Converted


def print_converted(report: Converted, dst: Path) -> None:
    """What a person is told at the end of a conversion."""
    _say(
        f"{report.clips:,} clips, {report.seconds / 3600:.2f} h, in {report.shards} shards "
        f"({report.already} of them were there already), {report.bytes / 1e6:,.1f} MB, in {dst}"
    )
    if report.missing:
        _say(f"not there: {report.missing:,} clips that the data set lists, in {dst / 'index' / 'missing.csv'}")
    _print_oddities(report, dst)


def print_adopted(report: Adopted, folder: Path) -> None:
    """What a person is told when tars of others have been indexed into `folder`."""
    codecs = ", ".join(f"{count:,} {codec}" for codec, count in report.codecs.items())
    _say(
        f"{report.clips:,} clips, {report.seconds / 3600:.2f} h, in {report.shards} tars ({codecs}); "
        f"{report.classes:,} classes, {report.unlabelled:,} clips without a label; indexed in {folder / 'index'}"
    )
    for message in report.damaged.values():
        _say(f"damaged: {message} The clips before that are indexed.", sys.stderr)
    _print_oddities(report, folder)


def _print_oddities(report: Converted | Adopted, folder: Path) -> None:
    if report.saturated:
        keys = ", ".join(list(report.saturated)[:3]) + (", ..." if len(report.saturated) > 3 else "")
        _say(f"peaks over full scale are held to it in {len(report.saturated):,} clips ({keys})")
    if report.ignored:
        _say(f"passed over: {', '.join(f'{count:,} {what}' for what, count in sorted(report.ignored.items()))}")
    if report.quarantined:
        counted = ", ".join(f"{count:,} {reason}" for reason, count in report.reasons.items())
        _say(f"left out {len(report.quarantined):,} unusable files: {counted}")
        for one in report.quarantined[:10]:
            _say(f"  {one.reason:11} {one.file}")
        _say(f"  all of them, and why: {folder / 'index' / 'quarantine.json'}")
    _say(f"next: python -m gamut.shards stats {folder}")


def _say(text: str, to: TextIO | None = None) -> None:
    """A line, also of files whose names are not UTF-8."""
    print(text.encode(errors="backslashreplace").decode(), file=to)
