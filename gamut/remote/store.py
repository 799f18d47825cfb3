"""What every kind of remote place does: read a file or a part of it, and say why where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from gamut.errors import ShardError
from gamut.remote import Remote

BLOCK = 1 << 18  # bytes read at a time


class Passing(Exception):
    """A failure that may go away by itself, so that another try makes sense."""


class Changed(Passing):
    """The file is not the expected one; what was fetched of it must be discarded."""


class Refused(Exception):
    """A failure that another try will not fix."""


class Missing(Refused):
    """There is no such file."""


class Answer(NamedTuple):
    """What a store gives: `blocks` are the bytes asked for, or fewer where the connection ends."""

    size: int | None  # of the whole file, bytes; None: not known before its end
    etag: str | None
    blocks: Iterator[bytes]


class Store(Protocol):
    """A place with files. Belongs to the process that opened it."""

    ranges: bool  # whether a part of a file can be asked for

    def get(self, name: str, begin: int, end: int | None, etag: str | None) -> AbstractContextManager[Answer]:
        """Bytes [begin, end) of a file, to its end for None. Raises Passing, Changed (another `etag`) or Refused, also
        while `blocks` are read."""
        ...

    def names(self) -> list[str]:
        """The names of the files directly in this place. Raises as `get`."""
        ...


def refuse_pipe(base: str, settings: Remote) -> None:
    """Raise ShardError where `base` is a command and the settings do not allow commands."""
    if base.startswith("pipe:") and not settings.allow_pipe:
        raise ShardError(
            f"These shards are read by running a command ({base}). If you trust it, allow it with "
            "remote.allow_pipe=true (for python -m gamut.shards: --allow-pipe)."
        )


def failure(status: int, what: str) -> Exception:
    """The exception for an HTTP status that is not a success."""
    message = f"the server answered {status} {what}".rstrip()
    if status in (412, 416):
        return Changed(f"{message}: the file is not the expected one, or shorter")
    if status in (401, 403):
        return Refused(f"{message}: credentials are missing, wrong or expired")
    if status in (404, 410):
        return Missing(message)
    if 300 <= status < 400:  # urllib follows those that may be followed
        return Refused(message)
    if 400 <= status < 500 and status not in (408, 425, 429):
        return Refused(message)
    return Passing(message)


def span(content_range: str | None) -> tuple[int, int, int | None] | None:
    """(begin, end, size of the file) from `bytes 0-99/1234`; None for any other text."""
    unit, _, rest = (content_range or "").partition(" ")
    part, _, total = rest.partition("/")
    first, _, last = part.partition("-")
    if unit != "bytes" or not (first.isdigit() and last.isdigit()):
        return None
    return int(first), int(last) + 1, int(total) if total.isdigit() else None
