"""Clips of noise, as a plan would have them: to see what an encoder gives, and how long it takes."""

from __future__ import annotations

import torch

from gamut.data.batch import PackedBatch
from gamut.numbers import WINDOW
from gamut.plan import Policy


def noise(policy: Policy, clips: int) -> PackedBatch:
    """A batch of so many clips of faint noise, each filling its view."""
    frames, hop = policy.crop_frames or 16, policy.hops[0]
    samples = (frames - 1) * hop + WINDOW
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((clips,), samples, dtype=torch.int64)
    none = torch.zeros(clips, dtype=torch.int64)
    return PackedBatch(
        waveform=torch.randint(-99, 99, (clips * samples,), generator=generator, dtype=torch.int16),
        offset=torch.arange(clips + 1) * samples,
        length=sizes,
        hop=torch.full((clips,), hop, dtype=torch.int64),
        frames=torch.full((clips,), frames, dtype=torch.int64),
        clip_id=torch.arange(clips),
        draw=none,
        row=torch.arange(clips),
        label_offset=torch.zeros(clips + 1, dtype=torch.int64),
        label=torch.zeros(0, dtype=torch.int64),
        views=1,
        epoch=0,
        sizes=(frames,) * clips,
        pack_sizes=(clips,),
    )
