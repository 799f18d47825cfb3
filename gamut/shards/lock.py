"""One writer a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gamut.errors import ShardError


@contextmanager
def only_writer(folder: Path, *, with_others: bool = False) -> Iterator[None]:
    """Hold the shard set's lock, which ends with this process, however that ends. Makes the folder if need be.

    `with_others`: share it with those who say so too, the jobs of one conversion, each with shards of its own.

    Raises ShardError where another process has the lock, or the folder cannot be written.
    """
    try:
        (folder / "index" / "parts").mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "index" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ShardError(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if with_others else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(f"Another process is writing shards into {folder}. Wait for it to end.") from error
        yield
    finally:
        os.close(descriptor)
