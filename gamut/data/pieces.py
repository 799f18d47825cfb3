"""The pieces in which a remote shard is fetched and kept: runs of clips that lie behind each other.

Not whole shards, since those of others may have many GB, which a cache would have to hold and a reader to wait for; not
single clips, since a request takes tens of milliseconds and a node reads a thousand clips a second. A piece ends
between two clips, so every clip is one read of one file, and a piece can be checked against the index before anybody
sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gamut.errors import ShardError
from gamut.shards import Index


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
