"""Packed batches of clips that differ as sounds do, for tests: noise between white and brown, loud and soft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gamut.data.batch import PackedBatch
from tests.packs import packed

FRAMES = 96


def sounds(rows: Sequence[int], views: int = 2, epoch: int = 0) -> PackedBatch:
    """A batch of the clips numbered so; the same number is the same clip."""
    batch = packed([FRAMES] * (views * len(rows)), views=views)
    waves = [torch.zeros(0, dtype=torch.int16)]
    for row in rows:
        random = np.random.default_rng([7, row])
        for _ in range(views):
            white = random.normal(size=int(batch.length[0]))
            brown = np.cumsum(white) / 30.0
            wave = (row % 5 * brown + (4 - row % 5) * white) * 10.0 ** (2 + row % 3 / 2)
            waves.append(torch.as_tensor(wave.clip(-32768, 32767), dtype=torch.int16))
    clips = torch.as_tensor(np.asarray(rows, np.int64))
    return replace(batch, waveform=torch.cat(waves), row=clips, clip_id=clips * 7919 + 13, epoch=epoch)
