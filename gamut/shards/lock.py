"""One writer a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gamut.errors import ShardError
from gamut.files import lock


@contextlib.contextmanager
def only_writer(folder: Path, *, with_others: bool = False) -> Iterator[None]:
    """Hold the shard set's lock, which ends with this process, however that ends. Makes the folder if need be.

    `with_others`: share it with those who say so too, the jobs of one conversion, each with shards of its own.

    Raises ShardError where another process has the lock, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            (folder / "index" / "parts").mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(folder / "index" / "lock", wait=False, shared=with_others))
        except OSError as error:
            raise ShardError(f"{folder} cannot be written: {error.strerror}.") from error
        if not held:
            raise ShardError(f"Another process is writing shards into {folder}. Wait for it to end.")
        yield
