"""Bytes from a remote place, with retries; bytes that are missing, mixed or of another file are always an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import BinaryIO

from gamut.errors import ShardError
from gamut.remote import Remote
from gamut.remote.place import full
from gamut.remote.store import Changed, Missing, Passing, Refused, Store, refuse_pipe

LONGEST_PAUSE = 60.0  # seconds


class Denied(ShardError):
    """The server refuses: another try would get the same answer."""


class Absent(Denied):
    """The server says that there is no such file."""


def open_store(base: str, settings: Remote) -> Store:
    """The store of a base (see `place`). Raises ShardError where it is a command and commands are not allowed."""
    # Imported late: a process needs at most one of them, and most need none.
    if base.startswith("pipe:"):
        from gamut.remote.pipe import Pipe

        refuse_pipe(base, settings)
        return Pipe(base, settings)
    if base.startswith("s3://"):
        from gamut.remote.s3 import S3

        return S3(base, settings)
    from gamut.remote.http import Http

    return Http(base, settings)


def fetch(
    store: Store,
    base: str,
    name: str,
    sink: BinaryIO,
    settings: Remote,
    *,
    begin: int = 0,
    end: int | None = None,
    size: int | None = None,
    check: Callable[[BinaryIO], str | None] = lambda _: None,
    most: int | None = None,
    least: int = 0,
) -> int:
    """Write bytes [begin, end) of a remote file (to its end for None) to the start of `sink`, and return their number.

    `size` is that of the whole file, where known. A connection that ends early is resumed where it stopped, but only
    for the same version of the file (If-Range); any other failure, a wrong size, or a `check` that returns a problem
    starts from the beginning. Every try counts. More than `most` bytes are refused; a whole file of less than `least`
    is of a wrong size.

    Raises ShardError naming the URL, the range and the last problem; OSError where `sink` fails.
    """
    done, etag, problem = 0, None, ""
    if begin == end:
        return 0
    for attempt in range(settings.tries):
        if attempt:
            time.sleep(min(settings.pause_seconds * 2 ** (attempt - 1), LONGEST_PAUSE))
        try:
            with store.get(name, begin + done, end, etag) as answer:
                if size is not None and answer.size not in (None, size):
                    raise Changed(f"the file has {answer.size} bytes instead of {size}")
                if answer.size is not None and answer.size < least:
                    raise Changed(f"the file has {answer.size} bytes of {least}")
                if etag and answer.etag and answer.etag != etag:
                    raise Changed(f"its ETag is now {answer.etag} instead of {etag}")
                etag = etag or answer.etag
                last = answer.size if end is None else end
                sink.seek(done)
                for block in answer.blocks:
                    done += len(block)
                    if most is not None and done > most:
                        raise Refused(f"it has more than {most} bytes, which cannot be right")
                    if last is not None and begin + done > last:
                        raise Changed(f"more than the requested {last - begin} bytes arrived")
                    sink.write(block)
            sink.flush()
            if last is None and size not in (None, done):
                raise Changed(f"{done} bytes arrived instead of {size}")
            if last is not None and begin + done < last:
                raise Passing(f"the connection ended after {done} of {last - begin} bytes")
            if wrong := check(sink):
                raise Changed(wrong)
            return done
        except Refused as error:
            kind = Absent if isinstance(error, Missing) else Denied
            raise kind(f"{_asked(base, name, begin, end)} cannot be read: {error}.") from None
        except Passing as error:
            problem = str(error).rstrip(".")
            if isinstance(error, Changed) or not store.ranges or etag is None:
                done, etag = 0, None
    raise ShardError(
        f"{_asked(base, name, begin, end)} could not be fetched in {settings.tries} tries; the last one: {problem}. "
        "Once it can be read, start again; the cache is kept."
    )


def _asked(base: str, name: str, begin: int, end: int | None) -> str:
    part = f", bytes {begin} to {'the end' if end is None else end - 1}," if begin or end is not None else ""
    return f"{full(base, name)}{part}"
