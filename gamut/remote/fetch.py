"""Bytes from a remote place, tried again with patience, and never short, mixed or another's without an error."""

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
    """The server's answer is no: another try would get the same."""


class Absent(Denied):
    """The server says that there is no such file."""


def open_store(base: str, settings: Remote) -> Store:
    """The store of a base (see `place`). Raises ShardError where it is a command and commands are not allowed."""
    # Imported late: a process needs one of them at most, and most need none.
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
) -> int:
    """Write bytes [begin, end) of a remote file (to its end for None) to the start of `sink`; how many they are.

    `size` is that of the whole file, where it is known. A connection that ends early is taken up where it stopped,
    but only of the same version (If-Range); any other failure, a wrong size, and a `check` that says what is wrong
    start anew. Every try counts. `most`: more bytes than that are refused.

    Raises ShardError naming the URL, the range and what was seen last; OSError where `sink` fails.
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
                if etag and answer.etag and answer.etag != etag:
                    raise Changed(f"its ETag is now {answer.etag} instead of {etag}")
                etag = etag or answer.etag
                last = answer.size if end is None else end
                sink.seek(done)
                for block in answer.blocks:
                    done += len(block)
                    if most is not None and done > most:
                        raise Refused(f"it has more than the {most} bytes that are sensible")
                    if last is not None and begin + done > last:
                        raise Changed(f"more than the {last - begin} bytes asked for came")
                    sink.write(block)
            sink.flush()
            if last is None and size not in (None, done):
                raise Changed(f"{done} bytes came instead of {size}")
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
        "Once the place is in order, start again; what is in the cache is kept."
    )


def _asked(base: str, name: str, begin: int, end: int | None) -> str:
    part = f", bytes {begin} to {'the end' if end is None else end - 1}," if begin or end is not None else ""
    return f"{full(base, name)}{part}"
