"""Strong labels: a table of events with their times, added to a listing of clips."""

from __future__ import annotations

import os
from collections import ChainMap, Counter
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from gamut.errors import ShardError, nearest
from gamut.shards.convert.source import Event, Listing, Missing, Record, slashed, stem_of
from gamut.shards.convert.table import header, number, records
from gamut.shards.labels import in_order
from gamut.shards.part import MERGED, merge

COLUMNS = {  # and the other names that tables of DCASE and AudioSet have for them
    "filename": ("filename", "file", "path", "segment_id"),
    "onset": ("onset", "start_time_seconds", "start"),
    "offset": ("offset", "end_time_seconds", "end"),
    "event_label": ("event_label", "label", "class"),
}
COMPARED = 100_000  # names of clips that a mistyped one is compared with


class _Row(NamedTuple):
    line: int
    onset: float  # seconds
    offset: float
    label: str


def with_events(listing: Listing, table: Path) -> Listing:
    """The listing with the events of a table: a CSV, or with tabs, of `filename`, `onset`, `offset` (in seconds of the
    clip) and `event_label`, an event a row.

    A clip is named by its file as the data set has it, by the file's name with or without its ending, or by its key; it
    has its events' classes among its labels. Where no clip of the listing has a class, the events' are the classes, in
    alphabetical order. Events of one class that overlap or touch become one. Those of clips whose file is missing are
    passed over; both are counted.

    Raises ShardError naming the line of a row that is wrong, of a class that is not in the class table, and, once all
    records are iterated over, of a file that is no clip's, or several clips'.
    """
    events, classes, bare = _read(table)
    labels = listing.labels or tuple(in_order(classes))
    ids = {name: number for number, name in enumerate(labels)}
    for name, line in classes.items():
        if name not in ids:
            raise ShardError(
                f"{table}, line {line}: {name!r} is none of the {len(labels)} classes of {listing.name}"
                f"{nearest(name, labels)}."
            )
    counted = cast(MutableMapping[str, int], listing.ignored)  # which may grow with the records, so no copy of it
    passed = Counter({"rows of the events without an event": bare})

    def timed() -> Iterator[Record | Missing]:
        left, known = dict(events), list[str]()
        taken: dict[str, str] = {}  # name in the table -> clip
        for one in listing.records:
            names = _names(one)
            if len(known) < COMPARED:
                known.append(names[0])
            name = next((name for name in names if name in events), None)
            if name is None:
                yield one
                continue
            clip = one.clip if isinstance(one, Missing) else one.key
            if name in taken:
                raise ShardError(
                    f"{table}, line {events[name][0].line}: {name} may be the clip {taken[name]} and the clip {clip}. "
                    "Write the file as the data set has it, or the key of the clip."
                )
            taken[name] = clip
            rows = left.pop(name)
            if isinstance(one, Missing):
                passed["events of clips whose file is missing"] += len(rows)
                yield one
                continue
            whole, fewer = merge((row.onset, row.offset, ids[row.label], row.line) for row in rows)
            passed[MERGED] += fewer
            own = tuple(Event(*event) for event in whole)
            both = tuple(dict.fromkeys([*one.labels, *(event.label for event in own)]))
            yield replace(one, labels=both, events=own)
        if left:
            name, rows = next(iter(left.items()))
            raise ShardError(
                f"{table}, line {rows[0].line}: {name} is no clip of {listing.name}{nearest(name, known)}. "
                f"{len(left)} of the {len(events)} files in that table are unknown."
            )

    return replace(listing, labels=labels, records=timed(), ignored=ChainMap(passed, counted))


def _read(table: Path) -> tuple[dict[str, list[_Row]], dict[str, int], int]:
    """(file -> its rows, class -> the first line that has it, rows without an event)."""
    there, delimiter = header(table)
    found = {name: next((one for one in others if one in there), name) for name, others in COLUMNS.items()}
    events: dict[str, list[_Row]] = {}
    classes: dict[str, int] = {}
    bare = 0
    for line, row in records(table, tuple(found.values()), delimiter=delimiter):
        name, label = slashed(row[found["filename"]].strip()), row[found["event_label"]].strip()
        if not name:
            raise ShardError(f"{table}, line {line} has no {found['filename']}.")
        if not any(row[found[column]].strip() for column in ("onset", "offset", "event_label")):
            bare += 1  # how DCASE's tables list a file in which nothing happens
            continue
        onset, offset = (number(table, line, found[at], row[found[at]]) for at in ("onset", "offset"))
        if not label:
            raise ShardError(f"{table}, line {line} has no {found['event_label']}.")
        if onset < 0:
            raise ShardError(f"{table}, line {line}: the event begins at {onset:g} s, before its clip does.")
        if offset <= onset:
            raise ShardError(
                f"{table}, line {line}: the event ends at {offset:g} s, and begins only at {onset:g} s: the "
                f"{found['offset']} must be after the {found['onset']}."
            )
        classes.setdefault(label, line)
        events.setdefault(name, []).append(_Row(line, onset, offset, label))
    return events, classes, bare


def _names(one: Record | Missing) -> list[str]:
    """What a table may call a clip, the most exact first."""
    if isinstance(one, Missing):
        return [one.file, os.path.basename(one.file), one.clip, stem_of(one.file)]
    file = str(one.provenance.get("file", one.path))
    return [file, os.path.basename(file), one.key, stem_of(file)]
