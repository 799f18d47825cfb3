"""Tables of clips for the tests of the plan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gamut.plan import Clips

MakeClips = Callable[..., Clips]


@pytest.fixture(scope="session")
def make_clips() -> MakeClips:
    """make_clips(n, seed=0, low=0.005, high=12.0, shards=7): clips of `low` to `high` seconds, log-uniform."""

    def make(n: int, seed: int = 0, low: float = 0.005, high: float = 12.0, shards: int = 7) -> Clips:
        rng = np.random.default_rng(seed)
        samples = np.maximum(1, np.exp(rng.uniform(np.log(low), np.log(high), n)) * 16000).astype(np.int64)
        return Clips(
            row=np.arange(n),
            clip_id=rng.integers(0, 2**64, n, dtype=np.uint64),
            shard=np.sort(rng.integers(0, shards, n)),
            samples=samples,
            size=samples + 100,
        )

    return make
