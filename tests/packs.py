"""Small packed batches for tests, made of noise, and a batch's parts."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch

from gamut.data.batch import PackedBatch


def packed(
    frames: list[int],
    labels: list[list[int]] | None = None,
    views: int = 1,
    seed: int = 0,
    packs: tuple[int, ...] | None = None,
    hops: list[int] | None = None,
) -> PackedBatch:
    """A batch of len(frames) segments, `views` of them a clip, of noise at a hop of 160 samples, or those in `hops`.

    packs: clips of each pack; one pack of all by default.
    """
    hops = hops if hops is not None else [160] * len(frames)
    lengths = [(f - 1) * hop + 400 for f, hop in zip(frames, hops, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    waves = [torch.randint(-8000, 8000, (n,), generator=generator, dtype=torch.int16) for n in lengths]
    clips = len(frames) // views
    labels = labels if labels is not None else [[0]] * clips
    return PackedBatch(
        waveform=torch.cat([torch.zeros(0, dtype=torch.int16), *waves]),
        offset=torch.tensor([0, *lengths]).cumsum(0),
        length=torch.tensor(lengths, dtype=torch.int64),
        hop=torch.tensor(hops, dtype=torch.int64),
        frames=torch.tensor(frames, dtype=torch.int64),
        clip_id=torch.arange(clips) + 11,
        draw=torch.zeros(clips, dtype=torch.int64),
        row=torch.arange(clips),
        label_offset=torch.tensor([0] + [len(x) for x in labels]).cumsum(0),
        label=torch.tensor([label for x in labels for label in x], dtype=torch.int64),
        views=views,
        epoch=0,
        sizes=tuple(frames),
        pack_clips=packs if packs is not None else (clips,) * (clips > 0),
    )


def with_partners(batch: PackedBatch, frames: list[int], seed: int = 1) -> PackedBatch:
    """The batch in mixtures with clips of noise, of so many frames in each of its segments, 0 for none."""
    clips = list(zip(frames[:: batch.views], range(batch.clips)))
    other, hop = packed([size for size in frames if size], seed=seed), int(batch.hop[0]) if batch.segments else 160
    assert all(int(one) == hop for one in batch.hop), "partners have the hop of their segment"
    length = torch.tensor([(size - 1) * hop + 400 if size else 0 for size in frames], dtype=torch.int64)
    gain = 0.5 + torch.rand(len(frames), generator=torch.Generator().manual_seed(seed))
    row = torch.tensor([number if size else -1 for size, number in clips], dtype=torch.int64)
    return replace(
        batch,
        partner_waveform=other.waveform,
        partner_offset=torch.cat([length.new_zeros(1), length.cumsum(0)]),
        partner_length=length,
        partner_frames=torch.tensor(frames, dtype=torch.int64),
        partner_sizes=tuple(frames),
        partner_gain=torch.where(length > 0, gain, 1.0),
        partner_row=row,
    )


def part(batch: PackedBatch, first: int, last: int) -> PackedBatch:
    """Clips [first, last) of a batch."""
    a, b = first * batch.views, last * batch.views
    begin, end = int(batch.offset[a]), int(batch.offset[b])
    ends = list(accumulate(batch.pack_clips))
    partners = {}
    if batch.partner_gain is not None:
        first_sample, end_sample = int(batch.partner_offset[a]), int(batch.partner_offset[b])
        partners = {
            "partner_waveform": batch.partner_waveform[first_sample:end_sample],
            "partner_offset": batch.partner_offset[a : b + 1] - first_sample,
            "partner_row": batch.partner_row[first:last],
            "partner_sizes": batch.partner_sizes[a:b],
            **{name: getattr(batch, name)[a:b] for name in ("partner_length", "partner_frames", "partner_gain")},
        }
    spans = [min(last, end) - max(first, end - size) for end, size in zip(ends, batch.pack_clips)]
    return replace(
        batch,
        waveform=batch.waveform[begin:end],
        offset=batch.offset[a : b + 1] - begin,
        length=batch.length[a:b],
        hop=batch.hop[a:b],
        frames=batch.frames[a:b],
        clip_id=batch.clip_id[first:last],
        draw=batch.draw[first:last],
        row=batch.row[first:last],
        label_offset=batch.label_offset[first : last + 1] - batch.label_offset[first],
        label=batch.label[int(batch.label_offset[first]) : int(batch.label_offset[last])],
        sizes=batch.sizes[a:b],
        pack_clips=tuple(clips for clips in spans if clips > 0),
        **partners,
    )
