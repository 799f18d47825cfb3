"""From int16 samples of a ragged batch to mean-free floats in [-1, 1), mixed with a partner where there is one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

SCALE = 1.0 / 32768.0


class Partner(NamedTuple):
    """Mixup partners of S segments."""

    waveform: torch.Tensor  # int16 [samples], 16 kHz
    offset: torch.Tensor  # int64 [S + 1]; segment s is mixed with samples [offset[s], offset[s + 1]), or with none
    weight: torch.Tensor  # float32 [S], lambda: the share of the segment's own sound; 1 without a partner


def mean_free(waveform: torch.Tensor, offset: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """float32 [samples]: int16 / 32768 less the mean of the segment's own samples, and 0 after them, a segment at a
    time: on a CPU a quarter of the time of the sums over all samples.

    waveform: int16 [samples]; offset: int64 [S + 1]; length: int64 [S], samples that are the segment's own.
    """
    samples = waveform * SCALE
    for begin, end, own in zip(offset.tolist(), offset[1:].tolist(), length.tolist()):
        clip = samples[begin : begin + own]
        clip -= clip.mean() if own else 0.0
        samples[begin + own : end] = 0.0
    return samples


def mean_free_ragged(waveform: torch.Tensor, offset: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """`mean_free` over all segments at once: exact integer sums, so the order of summation does not matter."""
    total = len(waveform)
    sums = F.pad(waveform.cumsum(0, dtype=torch.int64), (1, 0))
    mean = (sums[offset[:-1] + length] - sums[offset[:-1]]).double() / length.clamp_min(1)
    span = offset.diff()
    own_end = torch.repeat_interleave(offset[:-1] + length, span, output_size=total)
    mean = torch.repeat_interleave((mean * SCALE).float(), span, output_size=total)
    inside = torch.arange(total, device=waveform.device) < own_end
    return torch.where(inside, waveform * SCALE - mean, 0.0)


def mix(samples: torch.Tensor, offset: torch.Tensor, partner: Partner) -> torch.Tensor:
    """weight * own + (1 - weight) * partner, both free of their means, the partner cut or zero-padded to the segment.

    samples: float32 [samples], what `mean_free` gave, overwritten; offset: int64 [S + 1]. A segment whose partner has
    no samples and whose weight is 1 keeps its bits. Raises nothing: the plan gives a partner at most as many samples
    as the segment has of its own.
    """
    other, weight = partner.offset, partner.weight
    if samples.device.type == "cpu":
        added = mean_free(partner.waveform, other, other.diff())
        for segment, share in enumerate(weight.tolist()):
            begin, first, last = int(offset[segment]), int(other[segment]), int(other[segment + 1])
            if last > first:
                samples[begin : int(offset[segment + 1])] *= share
                samples[begin : begin + last - first] += added[first:last] * (1.0 - share)
        return samples
    span, count = offset.diff(), other.diff()
    added = mean_free_ragged(partner.waveform, other, count)
    samples *= torch.repeat_interleave(weight, span, output_size=len(samples))
    added *= torch.repeat_interleave(1.0 - weight, count, output_size=len(added))
    place = torch.repeat_interleave(offset[:-1] - other[:-1], count, output_size=len(added))
    place += torch.arange(len(added), device=added.device)
    return samples.index_add_(0, place, added)  # each place once: no order of summation to depend on
