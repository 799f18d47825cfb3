"""A CSV written by the user: the layout for a data set that has none of its own."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gamut.audio.segment import Segment
from gamut.errors import ShardError
from gamut.shards.convert.source import SPLIT, Listing, Missing, Record, Source, Stems, hash_of, key_of, slashed
from gamut.shards.convert.table import header, number, records
from gamut.shards.convert.tree import Folders
from gamut.shards.labels import in_order
from gamut.shards.select import RESERVED

PATH, LABELS = "path", "labels"
GROUP = "group"  # one of the set's own columns: its clips are not parted by folds
KNOWN = (PATH, LABELS, SPLIT, "key", "text", "start", "end")
SEPARATOR = ";"
WHOLE = re.compile(r"[+-]?\d{1,18}")


class Csv(Source):
    """A CSV with a header, or with tabs. Columns: `path` (absolute, or relative to the CSV), and optionally `labels`
    (separated by `;`; none: unlabelled), `split`, `key`, `text`, and `start` and `end` (seconds, in a longer file).

    Any other column goes into the index if all its fields are whole numbers, otherwise into KEY.json. Where folds are
    made, clips of one `group` (a column of yours), or else cut from one file, are in one fold. SRC is the CSV,
    or a folder that holds only one. Rows of one clip that differ in their labels alone are a clip with all of them.
    Classes and splits are in alphabetical order, classes that are whole numbers by their value; splits that are numbers
    keep them.
    """

    expects = f"a CSV with the column path and, optionally, {', '.join(KNOWN[1:])} and columns of your own"
    of_file = True

    def list(self, folder: Path) -> Listing:
        """One record a row. Raises ShardError naming the line that is wrong."""
        table = only_file(folder, ".csv")
        seen = _look(table)
        names = {SPLIT: {name: (number,) for name, number in seen.splits.items()}} if seen.splits else {}
        columns = ((SPLIT,) if seen.splits else ()) + tuple(seen.whole)
        ignored, there = Counter[str](), header(table)[0]
        made, said = _records(table, seen, ignored), []
        if LABELS not in there:
            said = [f"{table} has no column {LABELS}, so its clips have no classes; it has {', '.join(there)}."]
        return Listing(table.stem, tuple(seen.labels), columns, made, ignored, names, said)


def only_file(place: Path, suffix: str) -> Path:
    """The file itself, or the one of that ending in a folder. Raises ShardError."""
    if place.is_file():
        return place
    found = sorted(name for name in os.listdir(place) if name.endswith(suffix) and not name.startswith("."))
    if len(found) != 1:
        there = f"{len(found)} of them: {', '.join(found[:5])}" if found else "none"
        raise ShardError(f"{place} must hold one {suffix} file, but holds {there}. Give the file itself as SRC.")
    return place / found[0]


@dataclass
class _Look:
    """What the first pass over the table finds."""

    labels: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)  # columns that go into the index
    stems: Stems = field(default_factory=Stems)
    together: dict[int, dict[str, None]] = field(default_factory=dict)  # clip of several rows -> its labels, in order


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of the table, with `path` as it is written here. Raises ShardError."""
    for line, row in records(table, (PATH,), delimiter=header(table)[1], breaks=True):
        if wrong := [name for name in KNOWN if name != "text" and re.search("[\r\n]", row.get(name, ""))]:
            raise ShardError(
                f"{table}, line {line}: {wrong[0]} goes on over several lines. Remove the quote that opens it, or "
                "close it."
            )
        yield line, row | {PATH: slashed(row[PATH])}


def _look(table: Path) -> _Look:
    seen = _Look()
    labels, splits, whole = set[str](), set[str](), dict[str, bool]()
    rows, clips, several = set[int](), set[int](), set[int]()
    if taken := [name for name in header(table)[0] if name in RESERVED]:
        raise ShardError(
            f"The columns of {table} cannot be called {', '.join(taken)}: these names have a special meaning in a "
            f"recipe's `subset`. Rename the columns; classes belong into the column `{LABELS}`."
        )
    for line, row in _rows(table):
        if not row[PATH]:
            raise ShardError(f"{table}, line {line} has no path.")
        labels.update(_labels(row))
        if SPLIT in row:
            splits.add(row[SPLIT])
        for name, value in row.items():
            if name not in KNOWN:
                whole[name] = whole.get(name, True) and WHOLE.fullmatch(value) is not None
        if (again := _hash(row)) in rows:
            continue
        rows.add(again)
        if (clip := _clip(row)) in clips:
            several.add(clip)
        elif not row.get("key"):
            seen.stems.add(_source(row))
        clips.add(clip)
    seen.stems.close()
    seen.labels = {name: at for at, name in enumerate(in_order(labels))}
    seen.together = _together(table, several) if several else {}
    seen.splits = _numbers(splits)
    seen.whole = [name for name, all_whole in whole.items() if all_whole and re.fullmatch(r"[\w-]+", name)]
    return seen


def _together(table: Path, several: set[int]) -> dict[int, dict[str, None]]:
    """The labels of the clips that have several rows. Raises ShardError where the rows differ in anything else."""
    found: dict[int, dict[str, None]] = {}
    first: dict[int, tuple[int, dict[str, str]]] = {}
    for line, row in _rows(table):
        if (clip := _clip(row)) not in several:
            continue
        before, like = first.setdefault(clip, (line, row))
        if other := [name for name in row if name != LABELS and row[name] != like[name]]:
            raise ShardError(
                f"{table}, line {line}: {row[PATH]} is also on line {before}, with another {other[0]}. The rows of one "
                f"clip may differ in {LABELS} alone: remove one, or the column, or give each a key of its own."
            )
        found.setdefault(clip, {}).update(dict.fromkeys(_labels(row)))
    return found


def _numbers(splits: set[str]) -> dict[str, int]:
    """The value of each split. Splits that are numbers keep them, so that `split: [1]` means what the table says."""
    own = {name: int(name) for name in sorted(splits) if WHOLE.fullmatch(name)}
    if len(own) == len(set(own.values())) == len(splits):
        return own
    return {name: at for at, name in enumerate(sorted(splits))}


def _hash(row: dict[str, str]) -> int:
    """Equal for rows that repeat each other."""
    return hash_of("\n".join(row.values()))


def _clip(row: dict[str, str]) -> int:
    """Equal for rows of one clip."""
    return hash_of("\n".join(row.get(name, "") for name in (PATH, "start", "end", "key")))


def _labels(row: dict[str, str]) -> list[str]:
    """In their order, each once."""
    return list(dict.fromkeys(label.strip() for label in row.get(LABELS, "").split(SEPARATOR) if label.strip()))


def _source(row: dict[str, str]) -> str:
    """What distinguishes a row's clip from those of other rows, ending in the name of its file."""
    start = row.get("start", "")
    return row[PATH] if not start else f"{os.path.splitext(row[PATH])[0]}_{key_of(start)}.x"


def _records(table: Path, seen: _Look, ignored: Counter[str]) -> Iterator[Record | Missing]:
    present = Folders()
    rows, done = set[int](), set[int]()
    for line, row in _rows(table):
        if (again := _hash(row)) in rows:
            ignored["rows that repeat another"] += 1
            continue
        rows.add(again)
        labels = _labels(row)
        if (clip := _clip(row)) in seen.together:
            if clip in done:
                continue
            done.add(clip)
            labels = list(seen.together[clip])
        key = key_of(row["key"]) if row.get("key") else seen.stems.key(_source(row))
        split = seen.splits.get(row.get(SPLIT, ""))
        file = present.find(table.parent / row[PATH])
        if file is None:
            yield Missing(key, row[PATH], split)
            continue
        start, end = (number(table, line, at, row[at]) if row.get(at) else None for at in ("start", "end"))
        columns = {name: int(row[name]) for name in seen.whole}
        rest = {name: value for name, value in row.items() if name not in KNOWN and name not in seen.whole}
        yield Record(
            key=key,
            path=file,
            labels=tuple(seen.labels[label] for label in labels),
            text=row.get("text", ""),
            columns=columns if split is None else {SPLIT: split, **columns},
            provenance={"file": row[PATH], **rest},
            segment=None if start is None and end is None else Segment(start or 0.0, end),
            group=row.get(GROUP) or ("" if start is None and end is None else row[PATH]),
        )
