"""What `convert`, `index` and `stats` print at their end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table

from gamut.commands import as_typed
from gamut.shards.batching import ROW, Spending
from gamut.shards.doubles import TABLE, Doubles
from gamut.shards.folds import told

if TYPE_CHECKING:  # they need torch, ffmpeg and soundfile, which the caller has imported already
    from gamut.shards.adopt import Report as Adopted
    from gamut.shards.convert.run import Report as Converted
    from gamut.shards.index import Index
    from gamut.shards.statistics import Statistics
    from gamut.shards.verify import Damage

MOST = 20  # classes listed whole; of more, the most frequent ones and the rarest
WIDEST = 30  # characters of a bar


def print_converted(report: Converted, dst: Path) -> None:
    """The summary of a conversion."""
    _say(
        f"{report.clips:,} clips, {report.seconds / 3600:.2f} h, in {report.shards} shards "
        f"({report.already} of them already there), {report.bytes / 1e6:,.1f} MB, in {dst}"
    )
    if report.missing:
        _say(f"missing: {report.missing:,} clips that the data set lists; see {dst / 'index' / 'missing.csv'}")
    _print_oddities(report, dst)


def print_adopted(report: Adopted, folder: Path, name: str) -> None:
    """The summary of indexing third-party tars, as the set `name`, into `folder`."""
    codecs = ", ".join(f"{count:,} {codec}" for codec, count in report.codecs.items())
    _say(
        f"{report.clips:,} clips, {report.seconds / 3600:.2f} h, in {report.shards} tars ({codecs}); "
        f"{report.classes:,} classes, {report.unlabelled:,} clips without a label; indexed in {folder / 'index'}"
    )
    if report.folds:
        _say(told(name, report.folds, official=False, together="clips with the same bytes"))
    for message in report.damaged.values():
        _say(f"damaged: {message} The clips before the damage are indexed.", sys.stderr)
    _print_oddities(report, folder)


def _print_oddities(report: Converted | Adopted, folder: Path) -> None:
    if report.saturated:
        keys = ", ".join(list(report.saturated)[:3]) + (", ..." if len(report.saturated) > 3 else "")
        _say(f"peaks over full scale were clipped in {len(report.saturated):,} clips ({keys})")
    for how, count in report.read.items():
        _say(f"{count:,} clips {how}")
    if report.ignored:
        _say(f"passed over: {', '.join(f'{count:,} {what}' for what, count in sorted(report.ignored.items()))}")
    if report.quarantined:
        counted = ", ".join(f"{count:,} {reason}" for reason, count in report.reasons.items())
        files = "files" if len(report.quarantined) > 1 else "file"
        _say(f"left out {len(report.quarantined):,} unusable {files}: {counted}")
        for one in report.quarantined[:10]:
            _say(f"  {one.reason:11} {one.file}")
        _say(f"  all of them, and why: {folder / 'index' / 'quarantine.json'}")
    if report.doubles is not None:
        _print_doubles(report.doubles, folder)
    if report.statistics is None:
        _say(f"no statistics yet, since --fast decodes no clip: python -m gamut.shards stats {folder}")
    else:
        _say(f"{_log_mel(report.statistics)}; to see what is in the set: python -m gamut.shards stats {folder}")


def _print_doubles(doubles: Doubles, folder: Path) -> None:
    if not doubles.groups:
        return
    _say(
        f"equal sound under several names: {doubles.clips:,} clips repeat another"
        + (
            f"; {doubles.across:,} of {doubles.groups:,} sounds are in more than one {doubles.side}"
            * (doubles.across > 0)
        )
    )
    for names in doubles.examples:
        _say(f"  {' = '.join(names)}")
    _say(f"  all of them: {folder / 'index' / TABLE}")


def _say(text: str, to: TextIO | None = None) -> None:
    """Print a line, even with file names that are not UTF-8."""
    print(as_typed(text).encode(errors="backslashreplace").decode(), file=to)


def print_verified(index: Index, damages: list[Damage], dst: str | Path) -> int:
    """What `verify` found in the set at DST; the exit status."""
    from gamut.shards.verify import remedies

    for damage in damages:
        print(f"{damage.place}: {damage.what}")
    if damages:
        print(f"{len(damages)} damages in {dst}. What to do:", file=sys.stderr)
        for remedy in remedies(index, damages):
            print(f"  {remedy}", file=sys.stderr)
        return 1
    print(f"{len(index):,} clips in {len(index.shards)} shards are as they were written")
    return 0


def print_described(statistics: Statistics, folder: Path, as_json: bool = False) -> None:
    """Plot and print what `stats` found of the set in `folder`."""
    from gamut.shards.plot import plot_set

    plot_set(folder, statistics)
    place = folder / "index"
    if as_json:
        print((place / "statistics.json").read_text())
        return
    print_statistics(statistics, folder)
    print(f"written to {place / 'statistics.json'}, plotted in {place / 'statistics.png'}")


def print_statistics(statistics: Statistics, folder: Path) -> None:
    """Everything that `stats` found of the set in `folder`, as tables."""
    console = Console(markup=False, emoji=False)  # class names may contain brackets
    console.print(
        f"{statistics.clips:,} clips, {statistics.hours:.2f} h; "
        f"{statistics.shortest:.2f} to {statistics.longest:.2f} s, median {statistics.median:.2f} s",
        highlight=False,
    )
    console.print(_bars("lengths", {name: count for name, count in statistics.lengths.items() if count}))
    console.print(_bars("sample rates of the sources", statistics.rates))
    if statistics.sources:
        console.print(_sources(statistics))
    for ending, reasons in statistics.unusable.items():
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        console.print(f"left out as unusable: {ending or 'no ending'}: {counted}", highlight=False)
    labels = statistics.labels
    if labels:
        often = dict(sorted(labels.items(), key=lambda item: -item[1])[:MOST]) if len(labels) > MOST else labels
        title = (
            f"the {MOST} most frequent of {len(labels)} classes" if often is not labels else f"{len(labels)} classes"
        )
        console.print(_bars(title, often))
        if often is not labels:
            console.print(_bars("the rarest classes", statistics.rarest, most=max(often.values())))
    if statistics.unlabelled:
        console.print(f"{statistics.unlabelled:,} clips have no label", highlight=False)
    if statistics.strong:
        weak = statistics.clips - statistics.strong - statistics.unlabelled
        console.print(_bars(f"{sum(statistics.events.values()):,} events, by class", statistics.events))
        console.print(
            f"{statistics.strong:,} clips have events (strong labels), {weak:,} have labels without times (weak)",
            highlight=False,
        )
    if statistics.doubles is not None:
        _print_doubles(statistics.doubles, folder)
    if statistics.silent:
        console.print(f"{statistics.silent:,} clips are silent: every sample is the same", highlight=False)
    console.print(batching_table(statistics.batching))
    console.print(_log_mel(statistics), highlight=False)


def _log_mel(statistics: Statistics) -> str:
    return f"log-mel: mean {statistics.mean:.6f}, std {statistics.std:.6f} over {statistics.frames:,} frames"


def _sources(statistics: Statistics) -> Table:
    table = Table(title="how the clips were read", title_justify="left")
    table.add_column("files", overflow="fold")
    for column in ("clips", "clipped", "padded"):
        table.add_column(column, justify="right")
    for source, counts in statistics.sources.items():
        table.add_row(source, *(f"{counts[column]:,}" for column in ("clips", "clipped", "padded")))
    return table


def batching_table(batching: Sequence[Spending]) -> Table:
    """ElasticAST's Table 1 for this set."""
    table = Table(
        title=f"Tokens that are padding, and audio that is cut away, at 10 ms a frame; rows of {ROW:,} tokens",
        title_justify="left",
    )
    table.add_column("way of batching")
    for column in ("padding", "cut away", "tokens"):
        table.add_column(column, justify="right")
    for one in batching:
        table.add_row(one.way, f"{one.padding:.2%}", f"{one.cut:.2%}", f"{one.tokens:,}")
    return table


def _bars(title: str, counts: Mapping[str, int], most: int | None = None) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    largest = max(most or 0, *counts.values(), 1)
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", "█" * round(WIDEST * count / largest))
    return table
