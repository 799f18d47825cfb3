"""Text that people write, as their programs save it: UTF-8 with or without a byte-order mark, UTF-16 with one; lines
that end in LF, CRLF or CR.

A byte-order mark that stays in a text makes a name of its own of the first line: a class, or a clip that no list knows.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import TextIO

from gamut.errors import GamutError

MARK = "\ufeff"


def open_text(path: str | Path, newline: str | None = None) -> TextIO:
    """A file of text, opened for reading, without its byte-order mark; `newline` as for `open`. Raises OSError, and
    UnicodeDecodeError when read."""
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    return io.TextIOWrapper(file, encoding=_encoding(file.peek(2)), newline=newline)


def lines_of(content: bytes) -> list[str]:
    """The lines of a text without blanks around them; empty ones stay. Raises UnicodeDecodeError.

    >>> lines_of(codecs.BOM_UTF8 + b"dog \\r\\ncat\\r\\n")
    ['dog', 'cat']
    """
    text = io.StringIO(content.decode(_encoding(content)), newline=None)
    return [line.lstrip(MARK).strip() for line in text]  # files that were joined have marks inside


def read_lines(path: Path, error: type[GamutError]) -> list[str]:
    """The lines of a file, as `lines_of`. Raises `error` where it cannot be read or is no such text."""
    try:
        return lines_of(path.read_bytes())
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text ({problem.reason}). Save it as UTF-8.") from problem


def _encoding(beginning: bytes) -> str:
    return "utf-16" if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
