"""The shards of a cache, open for positional reads, each thread with descriptors of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from gamut.errors import FeatureError
from gamut.features.shard import ALIGN, shard_name

FILES = 128  # open at a time, a thread
TRIES, PAUSE = 5, 0.1  # of a read that fails; seconds before the second try, doubling


class _Open(OrderedDict[int, tuple[int, int]]):
    """Number of a shard -> (descriptor, header bytes), the most recently used last. Closed when its thread ends."""

    def __del__(self) -> None:
        for descriptor, _ in self.values():
            os.close(descriptor)


class Files(threading.local):
    """What a thread has open. A forked process goes on with copies of its own.

    records int64 [shards]: how many each shard has, of `record_bytes` each. Where they begin follows from the file's
    size: opening one costs no read, which counts on a file system that is far away. What they hold is for the reader's
    checksum to say.
    """

    def __init__(self, folder: Path, records: np.ndarray, record_bytes: int) -> None:
        self._folder = folder
        self._records = records
        self._record_bytes = record_bytes
        self._open = _Open()

    def read(self, view: memoryview, shard: int, slot: int) -> int:
        """Fill `view` with the record in `slot` of a shard; the bytes read, fewer where the file ends.

        Raises OSError where the file cannot be read (it is tried again, unless the file is missing), FeatureError
        where it has not the size of its records.
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
        descriptor = os.open(self._folder / shard_name(shard), os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(descriptor).st_size
        header = size - int(self._records[shard]) * self._record_bytes
        if header < ALIGN or header % ALIGN:
            os.close(descriptor)
            raise FeatureError(f"it has {size} bytes, which its {self._records[shard]} records do not make")
        self._open[shard] = (descriptor, header)
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
