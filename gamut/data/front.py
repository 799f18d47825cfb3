"""The log-mel of a packed batch as its plan has it (mixed, at each segment's hop, pooled, padded), and its patches."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from gamut.audio.frames import zero_frames
from gamut.audio.logmel import cut, log_mel, normalise
from gamut.audio.waveform import Partner
from gamut.data.batch import PackedBatch
from gamut.numbers import PATCH


def spectrogram(
    batch: PackedBatch, mode: str = "fast", pad_with: str = "silence", compiled: bool = False
) -> torch.Tensor:
    """Log-mel frames before normalisation, float32 [sum(sizes), 128], on the batch's device.

    mode: `fast` or `exact`, as in `gamut.audio.logmel`. pad_with: what follows the sound of a clip that is shorter
    than its view: the frames of a waveform of zeros (`silence`, ASiT), or frames of 0.0 (`zero`, AST). compiled: as
    in `log_mel`.
    """
    partner = None
    if batch.partner_waveform is not None:
        assert batch.partner_offset is not None
        assert batch.partner_weight is not None
        weight = batch.partner_weight.repeat_interleave(batch.views, output_size=batch.segments)
        partner = Partner(batch.partner_waveform, batch.partner_offset, weight)
    return _of_segments(batch, mode, pad_with, compiled, partner=partner)


class Mixtures(NamedTuple):
    """What is heard of a batch in which clips are added up at equal power: log-mel frames, or what is made of them."""

    own: torch.Tensor  # of the clips themselves, sum(sizes) frames
    mixed: torch.Tensor  # of the same views, with a partner where they have one
    partners: torch.Tensor  # of the partners, sum(partner_sizes) frames, at the power at which they are added


def mixtures(batch: PackedBatch, mode: str = "fast", pad_with: str = "silence", compiled: bool = False) -> Mixtures:
    """As `spectrogram`, of a batch of a plan of mixtures (`Policy.mixtures`)."""
    assert batch.partner_waveform is not None
    assert batch.partner_offset is not None
    assert batch.partner_gain is not None
    assert batch.partner_length is not None
    assert batch.partner_frames is not None
    own = _of_segments(batch, mode, pad_with, compiled)
    if not sum(batch.partner_sizes):
        return Mixtures(own, own, own[:0])
    gain = batch.partner_gain
    added = Partner(batch.partner_waveform, batch.partner_offset, torch.ones_like(gain), gain, batch.partner_length)
    mixed = _of_segments(batch, mode, pad_with, compiled, partner=added)
    which = torch.tensor(batch.mixtures).to(gain.device, non_blocking=True)
    partners = replace(
        batch,
        waveform=batch.partner_waveform,
        offset=torch.cat([batch.partner_offset[which], batch.partner_offset[-1:]]),
        length=batch.partner_length[which],
        hop=batch.hop[which],
        frames=batch.partner_frames[which],
        sizes=tuple(filter(None, batch.partner_sizes)),
        pool=None if batch.pool is None else batch.pool[which],
        pools=tuple(batch.pools[segment] for segment in batch.mixtures) if batch.pools else (),
    )
    return Mixtures(own, mixed, _of_segments(partners, mode, pad_with, compiled, gain=gain[which]))


def _of_segments(
    batch: PackedBatch,
    mode: str,
    pad_with: str,
    compiled: bool,
    partner: Partner | None = None,
    gain: torch.Tensor | None = None,
) -> torch.Tensor:
    mel = log_mel(
        batch.waveform,
        batch.offset,
        batch.length,
        batch.hop,
        batch.frames,
        batch.sizes,
        mode,
        pool=batch.pool,
        pools=batch.pools,
        partner=partner,
        gain=gain,
        compiled=compiled,
    )
    if pad_with == "silence":
        return mel
    return zero_frames(mel, batch.frames, batch.sizes, batch.length, batch.hop, batch.pool)


def normalised(
    batch: PackedBatch, mean: float, std: float, mode: str = "fast", *, pad_with: str = "silence", stride: int = PATCH
) -> torch.Tensor:
    """What a trained model reads of a batch: float32 [N, 256], the normalised patches of its `spectrogram`, `stride`
    frames and mel bins apart, in packed order."""
    return cut(normalise(spectrogram(batch, mode, pad_with), mean, std), batch.frames, batch.sizes, stride)
