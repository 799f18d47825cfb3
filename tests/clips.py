"""Tables of clips for the tests of the plan and of saved plans."""

from __future__ import annotations

import numpy as np

from gamut.plan import Clips


def make_clips(n: int, seed: int = 0, low: float = 0.005, high: float = 12.0, shards: int = 7) -> Clips:
    """Clips of `low` to `high` seconds, log-uniform, in so many shards."""
    rng = np.random.default_rng(seed)
    samples = np.maximum(1, np.exp(rng.uniform(np.log(low), np.log(high), n)) * 16000).astype(np.int64)
    return Clips(
        row=np.arange(n),
        clip_id=rng.integers(0, 2**64, n, dtype=np.uint64),
        shard=np.sort(rng.integers(0, shards, n)),
        samples=samples,
        size=samples + 100,
    )
