"""The log-mel of a packed batch as its plan has it (mixed, at each segment's hop, pooled, padded), and its patches."""

from __future__ import annotations

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
