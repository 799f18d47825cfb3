"""A set that is too large to be held as a table: what each shard comes to, and some of its clips when they are asked
for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gamut.plan.clips import Clips
from gamut.plan.policy import Policy


class Catalogue(ABC):
    """n clips by their places, 0 to n - 1, shard after shard in index order. Held are sums a shard, no column of clips.

    A set is planned from its catalogue block by block (`gamut.plan.blocks`) where it has clips or draws for two blocks.
    """

    first: np.ndarray  # int64 [S + 1], the place of each shard's first clip, and n; a shard may have none
    source: np.ndarray | None  # int32 [S], which set of a mixture a shard is of; None: there is one set
    mass: np.ndarray | None  # float64 [S], sum of the weights of a shard's clips; None: drawn in permutations

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def counts(self) -> np.ndarray:
        """int64 [S], clips of each shard."""
        return np.diff(self.first)

    def sets(self) -> list[np.ndarray]:
        """int64 [shards of the set] for each set of the mixture: its shards that have clips."""
        there = np.flatnonzero(self.counts)
        if self.source is None:
            return [there]
        of = self.source[there]
        return [there[of == number] for number in range(int(of.max(initial=-1)) + 1)]

    @abstractmethod
    def select(self, places: np.ndarray) -> Clips:
        """The clips at these places (int64 [k], in any order, a place any number of times), without weights."""

    @abstractmethod
    def lengths(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [k] each: row in the index, and samples at 16 kHz, of the clips at these places."""

    @abstractmethod
    def weights(self, first: int, last: int) -> np.ndarray:
        """float64 [last - first]: weights of the clips at these places, which are of one shard."""

    @abstractmethod
    def sent(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The catalogue as another process can be told of it: a JSON object, and arrays by name."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digits of everything that a plan reads about the clips, except weights."""

    @abstractmethod
    def weights_fingerprint(self) -> str:
        """Hexadecimal digits of the weights."""


class Held(Catalogue):
    """The catalogue of a table that is held after all."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips
        border = np.diff(clips.shard) != 0
        if clips.source is not None:
            border |= np.diff(clips.source) != 0
        begin = np.concatenate([[0], np.flatnonzero(border) + 1])[: len(clips)]
        self.first = np.append(begin, len(clips)).astype(np.int64)
        self.source = None if clips.source is None else clips.source[begin]
        self.mass = None
        if clips.weight is not None:
            owner = np.repeat(np.arange(len(begin)), self.counts)
            self.mass = np.bincount(owner, weights=clips.weight, minlength=len(begin))

    def select(self, places: np.ndarray) -> Clips:
        names = (name for name in self.clips.types() if name != "weight")
        return Clips(**{name: getattr(self.clips, name)[places] for name in names})

    def lengths(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.clips.lengths(places)

    def weights(self, first: int, last: int) -> np.ndarray:
        assert self.clips.weight is not None
        return self.clips.weight[first:last]

    def sent(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {name: getattr(self.clips, name) for name in self.clips.types()}

    def fingerprint(self) -> str:
        return self.clips.fingerprint()

    def weights_fingerprint(self) -> str:
        return self.clips.weights_fingerprint()


def in_blocks(clips: int, policy: Policy) -> bool:
    """Whether a set of so many clips is planned in blocks: where it, or an epoch's draws, would fill two of them.

    Smaller ones are planned an epoch at a time, which is a block of its own.
    """
    return max(clips, policy.draws or 0) >= 2 * policy.block
