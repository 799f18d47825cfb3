"""Cached features in place of sound: what a loader asks of a cache of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gamut.data.batch import Hole
from gamut.shards import Index


class Cache(Protocol):
    """Features of clips by rows of an index (`gamut.features.FeatureCache`). Safe to use from forked workers."""

    @property
    def holes(self) -> Sequence[Hole]:
        """Clips whose sound could not be encoded."""
        ...

    @property
    def info(self) -> Any:
        """`info.record_bytes`: what a clip takes on disk."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float16 or float32 [k, layers, steps, dim], verified. Raises FeatureError naming a clip that has none."""
        ...


class FeatureReader:
    """Reads what `assemble` asks for; which clips are holes is the cache's word, so alike on every rank."""

    def __init__(self, index: Index, cache: Cache) -> None:
        self.index = index
        self.cache = cache
        self._holes = {hole.row: hole for hole in cache.holes}

    def hole(self, row: int) -> Hole | None:
        """Why the clip in a row of the index has no features, or None where it should have."""
        return self._holes.get(row)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """As `Cache.read`; [0, layers, steps, dim] for no rows."""
        return self.cache.read(np.asarray(rows, np.int64))
