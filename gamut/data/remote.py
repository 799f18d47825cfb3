"""The bytes of a clip in a remote shard, by way of the node's cache.

Shards are fetched and kept in pieces, runs of consecutive clips. Whole shards would be too large, since third-party
ones may have many GB, which a cache would have to hold and a reader to wait for; single clips would be too small, since
a request takes tens of milliseconds and a node reads a thousand clips a second. A piece ends between two clips, so
every clip is one read of one file, and a piece can be checked against the index before it is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import xxhash

from gamut.data.cache import Cache
from gamut.errors import ShardError
from gamut.plan import Catalogue, Clips, Policy
from gamut.remote.fetch import fetch, open_store
from gamut.remote.store import Store
from gamut.shards import Index

AT_ONCE = 1 << 22  # clips of a pass


class RemoteShards:
    """Reads members of a remote shard set by row. Belongs to the process that reads.

    Where a server stalls, cuts off, fails, or sends other bytes than were indexed, it is tried again; then `read`
    raises ShardError, and the run stops: this is never a hole, since it says nothing about the clip.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.settings = index.tars.remote
        self.cache = Cache(self.settings.folder() / "pieces", self.settings.cache_bytes)
        self._store: Store | None = None
        self._pieces: Pieces | None = None

    @property
    def pieces(self) -> Pieces:
        if self._pieces is None:
            self._pieces = pieces_of(self.index)
        return self._pieces

    def read(self, row: int) -> bytes:
        """The clip's bytes as the cache holds them, of the length in the index."""
        piece = self.pieces.of(row)
        begin, end = int(self.pieces.begin[piece]), int(self.pieces.end[piece])
        at, length = int(self.index.offset[row]) - begin, int(self.index.size[row])
        return self.cache.read(self._name(piece), end - begin, lambda file: self._fetch(piece, file), at, length)

    def forget(self, row: int) -> None:
        """Have the clip fetched again when it is next read."""
        self.cache.drop(self._name(self.pieces.of(row)))

    def _name(self, piece: int) -> str:
        """A name of our own: nothing from a remote place becomes a path."""
        pieces = self.pieces
        return f"{self.index.fingerprint[:16]}-{pieces.shard[piece]:06d}-{pieces.begin[piece]:x}-{pieces.end[piece]:x}"

    def _fetch(self, piece: int, file: BinaryIO) -> None:
        tars = self.index.tars
        if self._store is None:
            self._store = open_store(tars.place, self.settings)
        shard, begin, end = int(self.pieces.shard[piece]), int(self.pieces.begin[piece]), int(self.pieces.end[piece])
        size = int(self.index.shards[shard]["size"])
        fetch(
            self._store,
            tars.place,
            tars.names[shard],
            file,
            self.settings,
            begin=begin,
            end=end if self._store.ranges else None,
            size=size,
            most=size,
            check=lambda written: self._wrong(piece, written),
        )

    def _wrong(self, piece: int, file: BinaryIO) -> str | None:
        """What is wrong with a fetched piece; None where it is as it was indexed."""
        rows = range(int(self.pieces.first[piece]), int(self.pieces.first[piece + 1]))
        for row in rows:
            at = int(self.index.offset[row]) - int(self.pieces.begin[piece])
            payload = os.pread(file.fileno(), int(self.index.size[row]), at)
            if xxhash.xxh3_64_intdigest(payload) != int(self.index.checksum[row]):
                return f"the clip {self.index.key(row)} does not have its checksum in the index"
        return None


@dataclass(frozen=True)
class Pieces:
    """Piece p holds the clips of rows [first[p], first[p + 1]): bytes [begin[p], end[p]) of a shard."""

    first: np.ndarray  # int64 [pieces + 1]
    shard: np.ndarray  # int32 [pieces]
    begin: np.ndarray  # int64 [pieces]
    end: np.ndarray  # int64 [pieces]

    def __len__(self) -> int:
        return len(self.shard)

    def of(self, row: int) -> int:
        """The piece that holds the clip of a row."""
        return int(np.searchsorted(self.first, row, side="right")) - 1

    @property
    def sizes(self) -> np.ndarray:
        """int64 [pieces], bytes."""
        return self.end - self.begin


def cut_pieces(index: Index, largest: int | None) -> Pieces:
    """Cut every shard into pieces of at most `largest` bytes (or one clip, if that is larger), or leave it whole for
    None. A function of the index alone. Raises ShardError where the index is not in the order of the tars."""
    shard, offset = np.asarray(index.shard), np.asarray(index.offset)
    ends = offset + np.asarray(index.size)
    same = shard[1:] == shard[:-1]
    if np.any(shard[1:] < shard[:-1]) or np.any(same & (offset[1:] < ends[:-1])):
        raise ShardError(f"The index in {index.folder} is damaged: its clips are not in the order of the tars.")
    first: list[int] = []
    edges = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(shard)]]) if len(shard) else np.zeros(1, np.int64)
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist()):
        row = begin
        while row < end:
            first.append(row)
            if largest is None:
                break
            row = max(row + 1, row + int(np.searchsorted(ends[row:end], offset[row] + largest, side="right")))
    start = np.array(first, np.int64)
    bounds = np.append(start, len(shard))
    last = bounds[1:] - 1
    if largest is None:
        whole = np.array([entry["size"] for entry in index.shards], np.int64)
        return Pieces(bounds, shard[start], np.zeros(len(start), np.int64), whole[shard[start]])
    return Pieces(bounds, shard[start], offset[start], ends[last])


def pieces_of(index: Index) -> Pieces:
    """The pieces of a remote set: of the size in the recipe, or whole shards where they come from a command."""
    settings = index.tars.remote
    return cut_pieces(index, None if index.tars.place.startswith("pipe:") else settings.piece_bytes)


def cache_needed(index: Index, clips: Clips | Catalogue, policy: Policy, nodes: int = 1) -> int:
    """Bytes that a node's cache must hold so that an epoch fetches nothing twice: lanes a node x window bytes.

    With `nodes` above 1 (`locality: node`) a node reads its own lanes, else all of them. All of the set is needed where
    it has no more clips than the window, since it is then permuted as a whole, and where a partner may be any
    clip (not with `locality: node`). Two more pieces a lane are for the ends of its window.
    """
    if not len(clips):
        return 0
    pieces = pieces_of(index)
    there = np.zeros(len(pieces), bool)
    for first in range(0, len(clips), AT_ONCE):
        row, _ = clips.lengths(np.arange(first, min(first + AT_ONCE, len(clips))))
        there[np.searchsorted(pieces.first, row, side="right") - 1] = True
    touched = np.flatnonzero(there)
    total, largest = int(pieces.sizes[touched].sum()), int(pieces.sizes[touched].max())
    window = policy.window if policy.shuffle else 0
    if len(clips) <= window or ((policy.mixup or policy.mixtures) and policy.locality == "none"):
        return total
    return min(total, -(-policy.lanes // nodes) * (window * total // len(clips) + 2 * largest))


def require_cache(index: Index, needed: int) -> None:
    """Raise ShardError where the cache is smaller than what is needed."""
    settings = index.tars.remote
    if needed > settings.cache_bytes:
        raise ShardError(
            f"The plan needs {needed / 1e9:,.3f} GB of cache on every node (lanes a node x window bytes), but "
            f"remote.cache_gb is {settings.cache_gb:g}: shards would be fetched again and again. Set remote.cache_gb "
            f"to {needed / 1e9 * 1.05 + 0.001:,.3f} or more, lower plan.window, or set plan.locality=node."
        )
