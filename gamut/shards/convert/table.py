"""The CSV tables of data sets, read row by row, with errors that name file and line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gamut.errors import ShardError

csv.field_size_limit(min(sys.maxsize, 16 << 20))  # a transcript can be longer than the 128 KiB that csv allows


def rows(table: Path, columns: Sequence[str] = (), *, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of every row of a CSV without a header, except blank rows and comments (`#`) at its beginning.

    A blank after a comma is not part of the field: AudioSet writes `YTID, 0.000, 10.000, "/m/09x0r,/m/05zppz"`.
    With `columns`, a row of fewer fields is an error. Raises ShardError naming file and line.
    """
    line, begun = 0, False
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True, delimiter=delimiter)
            for fields in reader:
                line = reader.line_num
                if not fields or fields == [""] or (not begun and fields[0].startswith("#")):
                    continue
                begun = True
                if len(fields) < len(columns):
                    raise ShardError(
                        f"{table}, line {line} has {len(fields)} fields, but needs {len(columns)}: "
                        f"{', '.join(columns)}."
                    )
                yield line, fields
    except UnicodeDecodeError as error:
        raise ShardError(f"{table} is not UTF-8 text after line {line}: {error.reason}.") from error
    except (OSError, csv.Error) as error:
        raise ShardError(f"{table} cannot be read after line {line}: {error}.") from error


def records(table: Path, needed: Sequence[str] = (), *, delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """(line, name -> field) of every row of a CSV with a header. Raises ShardError where a needed column is missing."""
    header: list[str] = []
    for line, fields in rows(table, delimiter=delimiter):
        if not header:
            header = [name.strip() for name in fields]
            _refuse_without(table, header, needed)
            continue
        if len(fields) != len(header):
            raise ShardError(f"{table}, line {line} has {len(fields)} fields, but its header has {len(header)}.")
        yield line, dict(zip(header, fields))
    _refuse_without(table, header, needed)


def header(table: Path) -> list[str]:
    """The names of the columns."""
    return next(([name.strip() for name in fields] for _, fields in rows(table)), [])


def _refuse_without(table: Path, header: Sequence[str], needed: Sequence[str]) -> None:
    if lacking := [name for name in needed if name not in header]:
        there = f"it has {', '.join(header)}" if header else "it is empty"
        raise ShardError(f"{table} has no column {', '.join(lacking)}; {there}.")


def number(table: Path, line: int, name: str, text: str) -> float:
    """A field as a number. Raises ShardError."""
    try:
        value = float(text)
        if value - value == 0:  # neither infinite nor NaN
            return value
    except ValueError:
        pass
    raise ShardError(f"{table}, line {line}: {name} is {text!r}, which is not a number.")


def integer(table: Path, line: int, name: str, text: str) -> int:
    """A field as a whole number. Raises ShardError."""
    value = number(table, line, name, text)
    if value != int(value):
        raise ShardError(f"{table}, line {line}: {name} is {text!r}, which is not a whole number.")
    return int(value)


def class_labels(table: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """AudioSet's class_labels_indices.csv (`index,mid,display_name`): the class names, and machine id -> class number.

    Raises ShardError where indices are not 0 to n - 1, or a machine id occurs twice.
    """
    names: list[str] = []
    numbers: dict[str, int] = {}
    for line, row in records(table, ("index", "mid", "display_name")):
        index = integer(table, line, "index", row["index"])
        if index != len(names) or row["mid"] in numbers:
            raise ShardError(f"{table}, line {line}: index {index} of {row['mid']} is out of order or occurs twice.")
        names.append(row["display_name"])
        numbers[row["mid"]] = index
    if not names:
        raise ShardError(f"{table} has no classes.")
    return tuple(names), numbers
