"""Clips with the same sound under several names: on both sides of a split, they make a score too good."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gamut.errors import ShardError
from gamut.files import write_bytes
from gamut.shards.index import Index

TABLE = "doubles.csv"  # in the folder of the index
SIDES = ("split", "fold")  # columns that part training from scoring; the first that a set has counts
AT_ONCE = 1 << 23  # rows
SHOWN = 5  # groups, and clips of each


@dataclass(frozen=True)
class Doubles:
    """What `find_doubles` found."""

    clips: int  # that sound like one before them
    groups: int
    across: int  # groups with clips on several sides
    side: str  # the column of SIDES; "" where the set has none
    examples: tuple[tuple[str, ...], ...]  # names of the first clips of the first groups, those on several sides first


def find_doubles(index: Index, checksums: np.ndarray) -> Doubles:
    """Groups of clips with equal checksums, uint64 [n], of what they sound like; all go into the TABLE beside the
    index, which is removed where there are none. Memory grows with the doubles alone.

    Raises ShardError where it cannot be written.
    """
    groups = _equal(checksums)
    side = next((column for column in SIDES if column in index.columns), "")
    across = [bool(side) and len(np.unique(index.columns[side][group])) > 1 for group in groups]
    first = sorted(range(len(groups)), key=lambda at: (not across[at], groups[at][0]))
    path = index.folder / "index" / TABLE
    if groups:
        _write(path, index, [groups[at].tolist() for at in first], side)
    else:
        path.unlink(missing_ok=True)

    def named(row: int) -> str:
        return _name(index, row) + (f" ({_side(index, side, row)})" if side else "")

    shown = (tuple(map(named, groups[at][:SHOWN].tolist())) for at in first[:SHOWN])
    return Doubles(sum(map(len, groups)) - len(groups), len(groups), sum(across), side, tuple(shown))


def _equal(checksums: np.ndarray) -> list[np.ndarray]:
    """Groups of rows, int64 ascending, with equal checksums. AT_ONCE rows are held, those of another range of values in
    each pass."""
    bits = max(0, (len(checksums) - 1) // AT_ONCE).bit_length()
    groups: list[np.ndarray] = []
    for number in range(1 << bits):
        found = []
        for at in range(0, len(checksums), AT_ONCE):
            some = np.asarray(checksums[at : at + AT_ONCE])
            mine = some >> np.uint64(64 - bits) == number if bits else np.ones(len(some), bool)
            found.append(at + np.flatnonzero(mine))
        rows = np.concatenate([np.zeros(0, np.int64), *found])
        del found
        values = np.asarray(checksums[rows])
        order = np.argsort(values, kind="stable")
        values = values[order]
        again = np.zeros(len(order) + 1, bool)  # whether a place has the checksum of the one before it
        np.equal(values[1:], values[:-1], out=again[1:-1])
        places = np.flatnonzero(again[:-1] | again[1:])
        if len(places):
            groups += np.split(rows[order[places]], np.flatnonzero(~again[places])[1:])
    return groups


def _write(path: Path, index: Index, groups: list[list[int]], side: str) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("group", "clip", side or "split", "labels"))
    for number, rows in enumerate(groups):
        for row in rows:
            labels = ";".join(index.labels[label] for label in index.label_ids(row))
            table.writerow((number, _name(index, row), _side(index, side, row) if side else "", labels))
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"), ShardError)


def _name(index: Index, row: int) -> str:
    """The clip's key; with its tar where keys may repeat."""
    key = index.key(row)
    return f"{index.tars.names[int(index.shard[row])]}/{key}" if index.codecs else key


def _side(index: Index, side: str, row: int) -> str:
    """The last name that means this value alone, or the value."""
    value = int(index.columns[side][row])
    alone = [name for name, values in index.names.get(side, {}).items() if list(values) == [value]]
    return alone[-1] if alone else f"{side} {value}"
