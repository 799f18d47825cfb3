"""From int16 samples of a ragged batch to mean-free floats in [-1, 1), mixed with a partner where there is one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from gamut.compiler import Forward, compiled_function

SCALE = 1.0 / 32768.0
RUN = 256  # samples added up together


class Partner(NamedTuple):
    """What S segments are mixed with."""

    waveform: torch.Tensor  # int16 [samples], 16 kHz
    offset: torch.Tensor  # int64 [S + 1]; segment s is mixed with samples [offset[s], offset[s + 1]), or with none
    weight: torch.Tensor  # float32 [S], lambda: the share of the segment's own sound; 1 without a partner
    gain: torch.Tensor | None = None  # float32 [S], what the partner is multiplied with; None: 1 - weight
    length: torch.Tensor | None = None  # int64 [S], samples that are the partner's, before zeros; None: all

    @property
    def lengths(self) -> torch.Tensor:
        return self.offset.diff() if self.length is None else self.length


def mean_free(waveform: torch.Tensor, offset: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """float32 [samples]: int16 / 32768 less the mean of the segment's own samples, and 0 after them, a segment at a
    time: on a CPU a quarter of the time of the sums over all samples.

    waveform: int16 [samples]; offset: int64 [S + 1]; length: int64 [S], samples that are the segment's own.
    """
    samples = waveform.float().mul_(SCALE)  # the bits of waveform * SCALE, which converts number by number
    for begin, end, own in zip(offset.tolist(), offset[1:].tolist(), length.tolist()):
        clip = samples[begin : begin + own]
        clip -= clip.mean() if own else 0.0
        samples[begin + own : end] = 0.0
    return samples


def mix(samples: torch.Tensor, offset: torch.Tensor, partner: Partner) -> torch.Tensor:
    """weight * own + gain * partner, both free of their means, a segment at a time.

    samples: float32 [samples], what `mean_free` gave, overwritten; offset: int64 [S + 1]. A partner is zero-padded to
    its segment, of whose own samples it has at most as many (the plan has cut it). A segment without one keeps its
    bits.
    """
    added = mean_free(partner.waveform, partner.offset, partner.lengths)
    spans = zip(offset.tolist(), offset[1:].tolist(), partner.offset.tolist(), partner.offset[1:].tolist())
    shares = partner.weight.tolist()
    gains = [1.0 - share for share in shares] if partner.gain is None else partner.gain.tolist()
    for share, gain, (begin, end, first, last) in zip(shares, gains, spans):
        if last > first:
            samples[begin:end] *= share
            samples[begin : begin + last - first] += added[first:last] * gain
    return samples


def mixed(
    waveform: torch.Tensor,
    offset: torch.Tensor,
    length: torch.Tensor,
    partner: Partner | None = None,
    compiled: bool = False,
    each: bool = False,
) -> torch.Tensor:
    """`mean_free`, then `mix` where there are partners: on a CPU, or where `each`, a segment at a time, else all at
    once. compiled: as in `mixed_ragged`."""
    if not each and waveform.device.type != "cpu":
        return mixed_ragged(waveform, offset, length, partner, compiled)
    samples = mean_free(waveform, offset, length)
    return samples if partner is None else mix(samples, offset, partner)


def mixed_ragged(
    waveform: torch.Tensor,
    offset: torch.Tensor,
    length: torch.Tensor,
    partner: Partner | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """`mean_free`, then `mix` where there are partners, over all segments at once, without waiting for the device.

    compiled: by torch.compile, in one pass over the samples; else with an operator for each of its steps.
    """
    if not len(waveform):
        return waveform.float()
    if partner is not None and not len(partner.waveform):
        partner = None
    if compiled and len(length) == 1:  # for one segment alone torch would compile anew: an empty one follows
        offset, length = torch.cat([offset, offset[-1:]]), F.pad(length, (0, 1))
        if partner is not None:
            offsets, weight = (torch.cat([part, part[-1:]]) for part in (partner.offset, partner.weight))
            gain = None if partner.gain is None else torch.cat([partner.gain, partner.gain[-1:]])
            partner = Partner(partner.waveform, offsets, weight, gain, F.pad(partner.lengths, (0, 1)))
    parts: list[Forward] = [_means, _mixed]
    means, joined = (compiled_function(part, True) for part in parts) if compiled else parts
    given = [waveform, offset, length, means(waveform, offset, length)]
    if partner is not None:
        # For fewer samples than two runs torch would compile anew.
        theirs = means if len(partner.waveform) >= 2 * RUN else _means
        mean = theirs(partner.waveform, partner.offset, partner.lengths)
        given += [partner.waveform, partner.offset, mean, *partner[2:]]
    return joined(*given)  # type: ignore[no-any-return]


def _mixed(
    waveform: torch.Tensor,
    offset: torch.Tensor,
    length: torch.Tensor,
    mean: torch.Tensor,
    partner: torch.Tensor | None = None,
    partner_offset: torch.Tensor | None = None,
    partner_mean: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    partner_length: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `mixed_ragged`; the means are float32 [S]. Places are int32: a batch has less than 37 hours of sound."""
    place = torch.arange(len(waveform), dtype=torch.int32, device=waveform.device)
    segment = torch.bucketize(place, offset[1:].int(), out_int32=True, right=True)
    inside = place - offset.int()[segment]
    own = torch.where(inside < length[segment], waveform.float() * SCALE - mean[segment], 0.0)
    if partner is None:
        return own
    assert partner_offset is not None
    assert partner_mean is not None
    assert weight is not None
    share = weight[segment]
    at = (partner_offset.int()[segment] + inside).clamp_max(len(partner) - 1)
    added = (partner[at].float() * SCALE - partner_mean[segment]) * (1.0 - share if gain is None else gain[segment])
    own = own * share
    there = partner_offset.diff() if partner_length is None else partner_length
    return torch.where(inside < there[segment], own + added, own)


def _means(waveform: torch.Tensor, offset: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """float32 [S]: of each segment's own samples / 32768. Exact sums, so their order does not matter."""
    runs = len(waveform) // RUN
    of_runs = waveform[: runs * RUN].view(runs, RUN).sum(1, dtype=torch.int32)
    before = F.pad(of_runs.long().cumsum(0), (1, 0))
    places = torch.stack([offset[:-1], offset[:-1] + length])
    run = places // RUN
    at = run[..., None] * RUN + torch.arange(RUN, device=waveform.device)
    rest = waveform[at.clamp_max(len(waveform) - 1)].masked_fill(at >= places[..., None], 0)
    sums = (before[run] + rest.sum(2)).diff(dim=0)[0]
    return (sums.double() / length.clamp_min(1) * SCALE).float()
