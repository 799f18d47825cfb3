"""The tars of a set as the index knows them, and sums over each: what a plan of many clips begins with."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from gamut.shards.part import hexadecimal

AT_ONCE = 1 << 22  # classes of shards
SHARDS_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class ShardTable(Sequence[dict]):
    """An entry a shard: {"name", "size", "clips", "checksum"}, made when it is asked for; s shards."""

    name: tuple[str, ...]
    size: np.ndarray  # int64 [s], bytes of the tar
    clips: np.ndarray  # int64 [s]
    checksum: np.ndarray  # uint64 [s], xxh3_64 of the tar

    @classmethod
    def of(cls, shards: Sequence[Mapping]) -> ShardTable:
        """From the list in an index.json of format 1. Raises ValueError, KeyError, TypeError, OverflowError."""
        return cls(
            tuple(one["name"] for one in shards),
            np.array([one["size"] for one in shards], np.int64),
            np.array([one["clips"] for one in shards], np.int64),
            np.array([int(one["checksum"], 16) for one in shards], np.uint64),
        )

    @classmethod
    def mapped(cls, arrays: Mapping[str, np.ndarray]) -> ShardTable:
        """From the columns of an index of format 2. Raises ValueError where its names are not text."""
        ends = arrays["shard-name_offset"]
        if len(ends) and (ends[0] != 0 or (np.diff(ends) < 0).any()):
            raise ValueError("shard-name_offset.npy does not ascend from 0")
        raw, edges = bytes(arrays["shard-name"]), ends.tolist()
        names = tuple(raw[first:last].decode() for first, last in itertools.pairwise(edges))
        return cls(names, arrays["shard-size"], arrays["shard-clips"], arrays["shard-checksum"])

    def __len__(self) -> int:
        return len(self.name)

    @overload
    def __getitem__(self, at: int) -> dict: ...
    @overload
    def __getitem__(self, at: slice) -> list[dict]: ...
    def __getitem__(self, at: int | slice) -> dict | list[dict]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        return {
            "name": self.name[at],
            "size": int(self.size[at]),
            "clips": int(self.clips[at]),
            "checksum": hexadecimal(int(self.checksum[at])),
        }

    @functools.cached_property
    def first(self) -> np.ndarray:
        """int64 [s + 1]: the row of the index with which each begins, and the number of all."""
        return np.concatenate([[0], np.cumsum(self.clips, dtype=np.int64)])


@dataclass(frozen=True, eq=False)
class ShardSums:
    """What a plan of many clips begins with: sums over each of s shards, without a pass over the clips where the index
    has them (format 2)."""

    clips: np.ndarray  # int64 [s]
    samples: np.ndarray  # int64 [s], at 16 kHz
    first: np.ndarray  # int64 [s], the row of the index with which each begins
    label_offset: np.ndarray  # int64 [s + 1]
    label: np.ndarray  # int32 [m], class ids of the clips of a shard, each once, ascending
    label_count: np.ndarray  # int32 [m], how many of the shard's clips have it (a clip that has it twice: twice)

    def label_totals(self, classes: int) -> np.ndarray:
        """int64 [classes]: labels of each class in the whole set."""
        found = np.zeros(classes, np.int64)
        for first in range(0, len(self.label), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            found += np.bincount(self.label[some], self.label_count[some], minlength=classes).astype(np.int64)
        return found

    def mass(self, of_class: np.ndarray) -> np.ndarray:
        """float64 [s]: the sum over the labels of each shard's clips of float64 [classes]."""
        found = np.zeros(len(self.clips))
        for first in range(0, len(found), SHARDS_AT_ONCE):
            edges = np.asarray(self.label_offset[first : first + SHARDS_AT_ONCE + 1])
            some = slice(edges[0], edges[-1])
            shard = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
            weight = of_class[self.label[some]] * self.label_count[some]
            found[first : first + len(edges) - 1] = np.bincount(shard, weight, minlength=len(edges) - 1)
        return found


def label_counts(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [k] class ids ascending, int32 [k] how often each is there) among int32 [n]."""
    ids, counts = np.unique(labels, return_counts=True)
    return ids.astype(np.int32), counts.astype(np.int32)


def sums_of(table: ShardTable, samples: np.ndarray, label_offset: np.ndarray, label: np.ndarray) -> ShardSums:
    """By one pass over the columns, a shard at a time; for an index of format 1. Memory grows with the shards."""
    sums, ids, counts = np.zeros(len(table), np.int64), [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    edges = table.first.tolist()
    for shard, (first, last) in enumerate(itertools.pairwise(edges)):
        sums[shard] = samples[first:last].sum()
        some, count = label_counts(label[label_offset[first] : label_offset[last]])
        ids.append(some)
        counts.append(count)
    offset = np.concatenate([[0], np.cumsum([len(some) for some in ids[1:]], dtype=np.int64)]).astype(np.int64)
    return ShardSums(table.clips, sums, table.first[:-1], offset, np.concatenate(ids), np.concatenate(counts))
