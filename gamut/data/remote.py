"""The bytes of a clip in a remote shard, by way of the node's cache.

Shards are fetched and kept in pieces, runs of consecutive clips. Whole shards would be too large, since third-party
ones may have many GB, which a cache would have to hold and a reader to wait for; single clips would be too small, since
a request takes tens of milliseconds and a node reads a thousand clips a second. A piece ends between two clips, so
every clip is one read of one file, and a piece can be checked against the index before it is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from gamut.data.cache import Cache
from gamut.errors import ShardError
from gamut.plan import Catalogue, Clips, Policy
from gamut.remote.fetch import fetch, open_store
from gamut.remote.store import Store
from gamut.shards import Index

AT_ONCE = 1 << 22  # clips of a pass
CUT = 4096  # shards of which the pieces are kept in mind


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
        self._cut: dict[int, Pieces] = {}  # of shards that clips were read of

    def read(self, row: int) -> bytes:
        """The clip's bytes as the cache holds them, of the length in the index."""
        piece = self._piece(row)
        at, length = int(self.index.offset[row]) - piece.begin, int(self.index.size[row])
        size = piece.end - piece.begin
        return self.cache.read(self._name(piece), size, lambda file: self._fetch(piece, file), at, length)

    def forget(self, row: int) -> None:
        """Have the clip fetched again when it is next read."""
        self.cache.drop(self._name(self._piece(row)))

    def _piece(self, row: int) -> Piece:
        """The piece that holds the clip of a row: only its shard is cut."""
        shard = int(self.index.shard[row])
        if shard not in self._cut:
            if len(self._cut) >= CUT:
                self._cut.clear()
            self._cut[shard] = cut_shard(self.index, shard, _largest(self.index))
        pieces = self._cut[shard]
        return pieces.piece(pieces.of(row))

    def _name(self, piece: Piece) -> str:
        """A name of our own: nothing from a remote place becomes a path."""
        return f"{self.index.fingerprint[:16]}-{piece.shard:06d}-{piece.begin:x}-{piece.end:x}"

    def _fetch(self, piece: Piece, file: BinaryIO) -> None:
        tars = self.index.tars
        if self._store is None:
            self._store = open_store(tars.place, self.settings)
        shard, begin, end = piece.shard, piece.begin, piece.end
        size = int(self.index.shard_table.size[shard])
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

    def _wrong(self, piece: Piece, file: BinaryIO) -> str | None:
        """What is wrong with a fetched piece; None where it is as it was indexed."""
        for row in piece.rows:
            at = int(self.index.offset[row]) - piece.begin
            payload = os.pread(file.fileno(), int(self.index.size[row]), at)
            if xxhash.xxh3_64_intdigest(payload) != int(self.index.checksum[row]):
                return f"the clip {self.index.key(row)} does not have its checksum in the index"
        return None


class Piece(NamedTuple):
    """Bytes [begin, end) of a shard, with the clips of some rows."""

    rows: range
    shard: int
    begin: int
    end: int


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

    def piece(self, number: int) -> Piece:
        """One of them."""
        rows = range(int(self.first[number]), int(self.first[number + 1]))
        return Piece(rows, int(self.shard[number]), int(self.begin[number]), int(self.end[number]))

    @property
    def sizes(self) -> np.ndarray:
        """int64 [pieces], bytes."""
        return self.end - self.begin


def cut_shard(index: Index, shard: int, largest: int | None) -> Pieces:
    """Cut a shard into pieces of at most `largest` bytes (or one clip, if that is larger), or leave it whole for None.
    A function of the index alone. Raises ShardError where the index is not in the order of the tars."""
    rows = index.rows_of(shard)
    offset = np.asarray(index.offset[rows.start : rows.stop])
    ends = offset + np.asarray(index.size[rows.start : rows.stop])
    if np.any(offset[1:] < ends[:-1]):
        raise ShardError(f"The index in {index.folder} is damaged: its clips are not in the order of the tars.")
    starts: list[int] = []
    at = 0
    while at < len(rows):
        starts.append(at)
        at = len(rows) if largest is None else _after(offset, ends, at, largest)
    first = np.array(starts, np.int64)
    bounds = np.append(first, len(rows))
    begin, end = offset[first], ends[bounds[1:] - 1]
    if largest is None and len(rows):
        begin, end = np.zeros(1, np.int64), np.array([index.shard_table.size[shard]], np.int64)
    return Pieces(bounds + rows.start, np.full(len(first), shard, np.int32), begin, end)


def _after(offset: np.ndarray, ends: np.ndarray, at: int, largest: int) -> int:
    """The clip after those of the piece that begins with clip `at`."""
    return max(at + 1, at + int(np.searchsorted(ends[at:], offset[at] + largest, side="right")))


def cut_pieces(index: Index, largest: int | None) -> Pieces:
    """The pieces of all shards, each as `cut_shard` cuts it."""
    each = [cut_shard(index, shard, largest) for shard in range(len(index.shard_table))]
    of = [np.concatenate([np.zeros(0, np.int64), *(getattr(one, name) for one in each)]) for name in ("begin", "end")]
    first = np.concatenate([*(one.first[:-1] for one in each), [len(index)]]).astype(np.int64)
    return Pieces(first, np.concatenate([np.zeros(0, np.int32), *(one.shard for one in each)]), *of)


def _largest(index: Index) -> int | None:
    """Bytes of a piece: as in the recipe; whole shards where they come from a command."""
    settings = index.tars.remote
    return None if index.tars.place.startswith("pipe:") else settings.piece_bytes


def cache_needed(index: Index, clips: Clips | Catalogue, policy: Policy, nodes: int = 1) -> int:
    """Bytes that a node's cache must hold so that a window's clips are fetched once: lanes a node x window bytes.

    While lanes go from one window to the next both are read, and with no more cache than this some pieces are fetched
    again; with twice as much hardly any are (docs/scaling.md).

    With `nodes` above 1 (`locality: node`) a node reads its own lanes, else all of them. All of the set is needed where
    it has no more clips than the window, since it is then permuted as a whole, and where a partner may be any
    clip (not with `locality: node`). Two more pieces a lane are for the ends of its window. Of an index that is fetched
    by ranges the sizes of the shards tell, which are a little more, and pieces count as full.
    """
    if not len(clips):
        return 0
    total, largest = _sizes_of_shards(index, clips) if index.by_ranges else _sizes_of_pieces(index, clips)
    window = policy.window if policy.shuffle else 0
    if len(clips) <= window or ((policy.mixup or policy.mixtures) and policy.locality == "none"):
        return total
    return min(total, -(-policy.lanes // nodes) * (window * total // len(clips) + 2 * largest))


def _sizes_of_pieces(index: Index, clips: Clips | Catalogue) -> tuple[int, int]:
    """Bytes of the pieces that hold these clips: (of all, of the largest)."""
    pieces = cut_pieces(index, _largest(index))
    there = np.zeros(len(pieces), bool)
    for first in range(0, len(clips), AT_ONCE):
        row, _ = clips.lengths(np.arange(first, min(first + AT_ONCE, len(clips))))
        there[np.searchsorted(pieces.first, row, side="right") - 1] = True
    touched = pieces.sizes[there]
    return int(touched.sum()), int(touched.max())


def _sizes_of_shards(index: Index, clips: Clips | Catalogue) -> tuple[int, int]:
    """`_sizes_of_pieces` without a look at the clips: (of the shards that hold them, of a full piece)."""
    shards = np.unique(clips.shard) if isinstance(clips, Clips) else np.flatnonzero(clips.counts)
    total = int(np.asarray(index.shard_table.size)[shards].sum())
    return total, min(total, index.tars.remote.piece_bytes)


def require_cache(index: Index, needed: int) -> None:
    """Raise ShardError where the cache is smaller than what is needed."""
    settings = index.tars.remote
    if needed > settings.cache_bytes:
        raise ShardError(
            f"The plan needs {needed / 1e9:,.3f} GB of cache on every node (lanes a node x window bytes), but "
            f"remote.cache_gb is {settings.cache_gb:g}: shards would be fetched again and again. Set remote.cache_gb "
            f"to {needed / 1e9 * 1.05 + 0.001:,.3f} or more, lower plan.window, or set plan.locality=node."
        )
