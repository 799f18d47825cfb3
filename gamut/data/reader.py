"""One clip's bytes, by one positional read from its shard and verified before use; or its cached features."""

from __future__ import annotations

import os
import resource
import time
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import xxhash

from gamut.data.batch import Hole
from gamut.data.cache import read_at
from gamut.data.remote import RemoteShards
from gamut.errors import AudioError, ShardError
from gamut.shards import Index
from gamut.shards.joined import Joined

FILES = 256  # shards that a process keeps open, where it may have four times as many files open


class Reader:
    """Reads and decodes members of a shard set by row, keeping at most `files` shards open (None: `may_open`).

    Two kinds of failure are kept apart. Wrong bytes (checksum, cut short, not decodable, another length) are a property
    of the clip, the same for every reader: `AudioError`, a hole. A read that fails (input/output error, missing file)
    says nothing about the clip: it is tried `tries` times, `pause` seconds apart and doubling, then raises
    `ShardError`, and the run stops. A reader belongs to one thread. Remote shards are read through the node's cache,
    with their own number of tries (see `RemoteShards`).

    >>> reader = Reader(Index.open("shards/esc50"))        # doctest: +SKIP
    >>> reader.decode(0).shape                             # doctest: +SKIP
    (80000,)
    """

    def __init__(self, index: Index, *, files: int | None = None, tries: int = 5, pause: float = 0.1) -> None:
        self.index = index
        self._files = files or may_open()
        self._tries = tries
        self._pause = pause
        self._decode = index.decode
        self._remote = RemoteShards(index) if index.tars.is_remote else None
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, the most recently used last

    def read(self, row: int) -> bytes:
        """The payload of the clip in `row` of the index, exactly as it was indexed.

        Raises AudioError (reason `truncated` or `checksum`) where the bytes have changed, ShardError where the shard
        cannot be read.
        """
        payload = self._payload(row)
        reason = self._fault(row, payload)
        if reason is None:
            return payload
        if self._remote is not None:
            self._remote.forget(row)
        else:
            self._close(int(self.index.shard[row]))  # reopen: the file may have been replaced meanwhile
        payload = self._payload(row)
        reason = self._fault(row, payload)
        if reason is None:
            return payload
        shard = self.index.tars.full(self.index.tars.names[self.index.shard[row]])
        if self._remote is not None:  # it had its checksum when it was fetched, so the fault is this node's
            raise ShardError(
                f"Clip {self.index.key(row)} of {shard} was fetched intact, but the cache {self._remote.cache.folder} "
                "returned other bytes, twice: its disk is faulty. Use another one with remote.cache=FOLDER."
            )
        found = "is cut off" if reason == "truncated" else "does not have its checksum in the index"
        raise AudioError(
            f"Clip {self.index.key(row)} in {shard} {found}. Run `python -m gamut.shards verify {self.index.folder}`.",
            reason,
        )

    def decode(self, row: int) -> np.ndarray:
        """The samples of the clip in `row`, int16 [samples of the index], 16 kHz.

        Raises AudioError as `read` does, and with reason `empty`, `length` or the decoder's where the audio is not
        what the index says.
        """
        samples = int(self.index.samples[row])
        payload = self.read(row)
        try:
            waveform = self._decode(payload, samples)
        except AudioError as error:
            shard = self.index.tars.full(self.index.tars.names[self.index.shard[row]])
            raise AudioError(f"Clip {self.index.key(row)} in {shard} is unusable. {error}", error.reason) from error
        if samples == 0 or len(waveform) != samples:
            raise AudioError(
                f"Clip {self.index.key(row)} decodes to {len(waveform)} samples, but has {samples} in the index. "
                f"Run `python -m gamut.shards verify {self.index.folder}`.",
                "empty" if samples == 0 else "length",
            )
        return waveform

    def close(self) -> None:
        """Close every open shard; the next read opens what it needs again."""
        for shard in list(self._open):
            self._close(shard)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def __del__(self) -> None:
        self.close()

    def _fault(self, row: int, payload: bytes) -> str | None:
        # `item` gives Python's numbers: comparing NumPy's scalars takes as long as the checksum.
        if len(payload) != self.index.size.item(row):
            return "truncated"
        return None if xxhash.xxh3_64_intdigest(payload) == self.index.checksum.item(row) else "checksum"

    def _payload(self, row: int) -> bytes:
        """size[row] bytes, or fewer where the file ends."""
        if self._remote is not None:
            return self._remote.read(row)
        shard, offset, size = self.index.shard.item(row), self.index.offset.item(row), self.index.size.item(row)
        for attempt in range(self._tries):
            try:
                return read_at(self._descriptor(shard), size, offset)
            except OSError as error:
                failure = error
                self._close(shard)
                if attempt + 1 < self._tries:
                    time.sleep(self._pause * 2**attempt)
        raise ShardError(
            f"Clip {self.index.key(row)} could not be read from {self.index.shard_path(shard)} in {self._tries} tries: "
            f"{failure.strerror or failure}. Check the file and its storage, then start again."
        ) from failure

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.get(shard)
        if descriptor is not None:
            self._open.move_to_end(shard)
            return descriptor
        while len(self._open) >= self._files:
            self._close(next(iter(self._open)))
        descriptor = os.open(self.index.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
        self._open[shard] = descriptor
        return descriptor

    def _close(self, shard: int) -> None:
        descriptor = self._open.pop(shard, None)
        if descriptor is not None:
            os.close(descriptor)


class Readers:
    """Clips of several shard sets, by the rows of their joined index: a `Reader` for each set of a mixture, so that
    messages name the set that a clip is in."""

    def __init__(self, index: Joined) -> None:
        self.index: Index = index
        self._joined = index
        each = max(1, may_open() // len(index.sets))
        self._readers = [Reader(part, files=each) for part in index.sets]

    def read(self, row: int) -> bytes:
        """As `Reader.read`."""
        part, own = self._joined.place(row)
        return self._readers[part].read(own)

    def decode(self, row: int) -> np.ndarray:
        """As `Reader.decode`."""
        part, own = self._joined.place(row)
        return self._readers[part].decode(own)

    def close(self) -> None:
        """Close every open shard."""
        for reader in self._readers:
            reader.close()


def may_open() -> int:
    """How many shards are kept open: FILES, or a quarter of what the process may open at all, where that is less."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES if limit == resource.RLIM_INFINITY else min(FILES, max(1, limit // 4))


def open_reader(index: Index) -> Reader | Readers:
    """A reader of the clips of an index, of one set or several."""
    return Readers(index) if isinstance(index, Joined) else Reader(index)


class Features(Protocol):
    """Features of clips by rows of an index (`gamut.features.FeatureCache`). Safe to use from forked workers."""

    @property
    def holes(self) -> Sequence[Hole]:
        """Clips whose audio could not be encoded."""
        ...

    @property
    def info(self) -> Any:
        """`info.record_bytes`: what a clip takes on disk."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float16 or float32 [k, layers, steps, dim], verified. Raises FeatureError naming a clip that has none."""
        ...


class FeatureReader:
    """Reads what `assemble` asks for. The cache states which clips are holes, the same on every rank."""

    def __init__(self, index: Index, cache: Features) -> None:
        self.index = index
        self.cache = cache
        self._holes = {hole.row: hole for hole in cache.holes}

    def holes(self, rows: np.ndarray) -> list[Hole | None]:
        """Why the clip in each row of the index has no features; None where it should have, and for a row of -1."""
        return list(map(self._holes.get, rows.tolist()))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """As `Features.read`; [0, layers, steps, dim] for no rows."""
        return self.cache.read(np.asarray(rows, np.int64))
