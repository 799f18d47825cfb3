"""The shards of a cache, open for positional reads, each thread with descriptors of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

from gamut.features.about import About
from gamut.features.shard import read_header, shard_name

FILES = 64  # open at a time, a thread
TRIES, PAUSE = 5, 0.1  # of a read that fails; seconds before the second try, doubling


class _Open(OrderedDict[int, tuple[int, int]]):
    """Number of a shard -> (descriptor, header bytes), the most recently used last. Closed when its thread ends."""

    def __del__(self) -> None:
        for descriptor, _ in self.values():
            os.close(descriptor)


class Files(threading.local):
    """What a thread has open. A forked process goes on with copies of its own."""

    def __init__(self, folder: Path, about: About) -> None:
        self._folder = folder
        self._about = about
        self._open = _Open()

    def read(self, view: memoryview, shard: int, slot: int) -> int:
        """Fill `view` with the record in `slot` of a shard; the bytes read, fewer where the file ends.

        Raises OSError where the file cannot be read (it is tried again, unless the file is missing), FeatureError
        where it is not a whole shard of the cache.
        """
        for attempt in range(TRIES):
            try:
                descriptor, header = self._file(shard)
                return _read_into(descriptor, view, header + slot * len(view))
            except OSError as error:
                self.close(shard)
                if isinstance(error, FileNotFoundError) or attempt + 1 == TRIES:
                    raise
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _file(self, shard: int) -> tuple[int, int]:
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        while len(self._open) >= FILES:
            self.close(next(iter(self._open)))
        path = self._folder / shard_name(shard)
        header = read_header(path, self._about, shard)
        self._open[shard] = (os.open(path, os.O_RDONLY | os.O_CLOEXEC), header.size)
        return self._open[shard]

    def close(self, shard: int) -> None:
        """Close a shard; the next read of it opens the file that then has its name."""
        found = self._open.pop(shard, None)
        if found is not None:
            os.close(found[0])


def _read_into(descriptor: int, view: memoryview, at: int) -> int:
    done = 0
    while done < len(view):
        read = os.preadv(descriptor, [view[done:]], at + done)
        if not read:
            break
        done += read
    return done
