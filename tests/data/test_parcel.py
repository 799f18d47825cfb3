"""A parcel is the batch, byte for byte, in one piece of memory."""

from __future__ import annotations

from dataclasses import fields

import torch

from gamut.data.batch import ALIGN, Hole, PackedBatch, Parcel


def _batch(clips: int, views: int = 2) -> PackedBatch:
    segments = clips * views
    numbers = torch.Generator().manual_seed(0)
    frames = torch.full((segments,), 16)
    size = 15 * 160 + 400

    def some(n: int) -> torch.Tensor:
        return torch.randint(-(2**62), 2**62, (n,), generator=numbers)

    return PackedBatch(
        waveform=torch.randint(-(2**15), 2**15, (segments * size,), dtype=torch.int16, generator=numbers),
        offset=torch.arange(segments + 1) * size,
        length=some(segments),
        hop=some(segments),
        frames=frames,
        clip_id=some(clips),
        draw=some(clips),
        row=some(clips),
        label_offset=torch.arange(clips + 1) * 3,
        label=some(clips * 3),
        views=views,
        epoch=7,
        sizes=tuple(frames.tolist()),
        holes=(Hole(3, "dog", "checksum"),),
    )


def test_a_parcel_gives_back_the_batch(equal) -> None:
    for clips in (0, 1, 3):
        batch = _batch(clips)
        parcel = Parcel.of(batch)
        back = parcel.open()
        assert equal(back, batch)
        memory = parcel.memory.untyped_storage()
        for f in fields(back):
            value = getattr(back, f.name)
            if isinstance(value, torch.Tensor) and value.numel():
                assert value.untyped_storage().data_ptr() == memory.data_ptr()
                assert (value.data_ptr() - memory.data_ptr()) % ALIGN == 0


def test_a_parcel_has_nothing_undefined_between_its_tensors() -> None:
    assert torch.equal(Parcel.of(_batch(3, views=1)).memory, Parcel.of(_batch(3, views=1)).memory)
