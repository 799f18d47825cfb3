"""The CSV tables of data sets, read row by row, with errors that name file and line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from gamut.errors import ShardError
from gamut.text import open_text

csv.field_size_limit(min(sys.maxsize, 16 << 20))  # a transcript can be longer than the 128 KiB that csv allows


def rows(
    table: Path, columns: Sequence[str] = (), *, more: bool = False, delimiter: str = ",", breaks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins on, fields) of every row of a CSV without a header, except blank rows, and comments (`#`)
    and the names of the `columns` at its beginning.

    A blank after a comma is not part of the field: AudioSet writes `YTID, 0.000, 10.000, "/m/09x0r,/m/05zppz"`.
    With `columns`, a row of another number of fields is an error, of fewer with `more`. Unless `breaks`, no field has
    a line break: it would be the next row, behind a quote too many. Raises ShardError naming file and line.
    """
    line, begun = 0, False
    try:
        with open_text(table, newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, delimiter=delimiter, strict=True)
            for fields in reader:
                first, line = line + 1, reader.line_num
                if not fields or fields == [""] or (not begun and fields[0].startswith("#")):
                    continue
                if line > first and not breaks:
                    raise ShardError(
                        f"{table}, line {first}: a quote opens a field that ends only on line {line}. Remove the "
                        "quote, or close it."
                    )
                if not begun and columns and [field.strip() for field in fields] == list(columns):
                    continue
                begun = True
                if columns and (len(fields) < len(columns) or (len(fields) > len(columns) and not more)):
                    raise ShardError(
                        f"{table}, line {first} has {len(fields)} fields, but needs {len(columns)}: "
                        f"{', '.join(columns)}. A field with a comma in it must be in quotes."
                    )
                yield first, fields
    except UnicodeDecodeError as error:
        raise ShardError(f"{table} is not UTF-8 text after line {line}: {error.reason}. Save it as UTF-8.") from error
    except csv.Error as error:
        raise ShardError(
            f"{table}, line {line + 1}: a quote that opens a field is not the last thing in it ({error}). Remove the "
            "quote, close it, or double those inside."
        ) from error
    except OSError as error:
        raise ShardError(f"{table} cannot be read after line {line}: {error}.") from error


def records(
    table: Path, needed: Sequence[str] = (), *, delimiter: str = ",", breaks: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line that it begins on, name -> field) of every row of a CSV with a header; `breaks` as for `rows`.

    Raises ShardError where a needed column is missing, or two have one name.
    """
    header: list[str] = []
    for line, fields in rows(table, delimiter=delimiter, breaks=breaks):
        if not header:
            header = [name.strip() for name in fields]
            _refuse_without(table, header, needed)
            if twice := [name for name in header if name and header.count(name) > 1]:
                raise ShardError(f"{table} has two columns {twice[0]}. Rename one of them.")
            continue
        if len(fields) != len(header):
            raise ShardError(f"{table}, line {line} has {len(fields)} fields, but its header has {len(header)}.")
        yield line, dict(zip(header, fields))
    _refuse_without(table, header, needed)


def header(table: Path) -> tuple[list[str], str]:
    """The names of the columns, and what stands between them: a tab where the header has one, else a comma."""
    names = next((fields for _, fields in rows(table)), [])
    tabs = any("\t" in name for name in names)
    return [name.strip() for field in names for name in field.split("\t")], "\t" if tabs else ","


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


def class_labels(
    table: Path, needed: Sequence[str] = ("index", "mid", "display_name")
) -> tuple[tuple[str, ...], dict[str, int]]:
    """A CSV of classes as AudioSet's class_labels_indices.csv: the class names, and machine id -> class number.

    Raises ShardError where a needed column is missing, indices are not 0 to n - 1, or a name or machine id is empty or
    there twice.
    """
    names: list[str] = []
    numbers: dict[str, int] = {}
    for line, row in records(table, needed):
        name, mid = row["display_name"].strip(), row.get("mid")
        refuse_again(table, line, name, names)
        if "index" in row and integer(table, line, "index", row["index"]) != len(names):
            raise ShardError(f"{table}, line {line}: index {row['index']} of {name!r} is out of order.")
        if mid is not None:
            refuse_again(table, line, mid, numbers)
            numbers[mid] = len(names)
        names.append(name)
    if not names:
        raise ShardError(f"{table} has no classes.")
    return tuple(names), numbers


def refuse_again(table: Path, line: int, name: str, before: Container[str]) -> None:
    """Raise ShardError for a class without a name, or with one that is there already."""
    if not name or name in before:
        why = f"names {name!r} again" if name else "names no class"
        raise ShardError(f"{table}, line {line} {why}: there must be a class a line, each once.")
