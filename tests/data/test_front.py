"""The log-mel of a planned batch, clip by clip against torchaudio, and its tokens against the plan's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchaudio.compliance import kaldi

from gamut.data.assemble import assemble
from gamut.data.front import mixtures, spectrogram
from gamut.models.layout import drop_tokens, layout
from gamut.plan import Policy, plan_epoch

POLICIES = {
    "resolution": Policy(packs=4, tokens=300, pad=False, max_frames=96, hops=tuple(range(160, 641, 32))),
    "pooling": Policy(packs=4, tokens=300, pad=False, max_frames=96, pools=(1, 2, 3, 4)),
    "mixup": Policy(packs=4, clips=4, crop_frames=48, mixup=0.8, hops=(160, 240)),
    "rolled, with local crops": Policy(
        packs=4, clips=3, views=2, crop_frames=48, local_views=2, local_frames=16, roll=0.5
    ),
    "everything": Policy(
        packs=4, tokens=400, views=2, crop_frames=64, pad=False, pools=(1, 3), hops=(160, 200), local_views=1,
        local_frames=32, mixup=0.5, roll=0.5, drop_tokens=0.1, class_token=False,
    ),
}  # fmt: skip


def oracle(wave: np.ndarray, hop: int) -> torch.Tensor:
    return kaldi.fbank(
        torch.from_numpy(wave.astype(np.float32))[None],
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=hop / 16.0 + 1e-6,
    )


def mean_free(wave: np.ndarray) -> np.ndarray:
    return wave / 32768.0 - (wave / 32768.0).mean()


@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_is_its_clips_one_by_one(corpus, name: str) -> None:
    """Cut by hand from the samples that were written, mixed by hand, averaged by torch's pooling."""
    policy = POLICIES[name]
    epoch = plan_epoch(corpus.index.table(), 3, 0, policy)
    packs = list(range(epoch.packs))
    batch = assemble(corpus.index, epoch, packs)
    pieces = iter(spectrogram(batch).split(list(batch.sizes)))
    seen = set()
    for n in range(int(epoch.pack_offset[epoch.packs])):
        for view in range(epoch.views):
            start, length, hop = int(epoch.start[n, view]), int(epoch.length[n, view]), int(epoch.hop[n, view])
            pool = 1 if epoch.pool is None else int(epoch.pool[n, view])
            frames = int(epoch.frames[n, view])
            wave = np.zeros((frames * pool - 1) * hop + 400)
            wave[:length] = mean_free(np.roll(corpus.waveforms[int(epoch.row[n])], -start)[:length].astype(float))
            if epoch.partner is not None and epoch.partner[n] >= 0:
                share = float(epoch.partner_weight[n])
                first, count = int(epoch.partner_start[n, view]), int(epoch.partner_length[n, view])
                other = mean_free(corpus.waveforms[int(epoch.partner[n])][first : first + count].astype(float))
                wave *= share
                wave[:count] += (1 - share) * other
            mel = F.avg_pool1d(oracle(wave, hop).T[None], pool)[0].T
            found = next(pieces)
            assert found.shape == (frames, 128)
            # A mixture in float32 has another rounding than one in float64, which bins of no energy amplify.
            assert (found - mel).abs().max() <= (1e-2 if epoch.partner is not None else 1e-3)
            assert (found - mel).abs().mean() <= (1e-4 if epoch.partner is not None else 1e-5)
            seen.add((hop, pool))
    assert len(seen) >= min(4, len(policy.hops) * len(policy.pools))


def test_exact_mode_knows_pooling_and_partners_too(corpus) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, POLICIES["everything"])
    batch = assemble(corpus.index, epoch, [0, 1])
    assert (spectrogram(batch, "exact") - spectrogram(batch, "fast")).abs().max() <= 1e-3


@pytest.mark.parametrize("name", POLICIES)
def test_the_tokens_of_a_pack_are_the_plan_s(corpus, name: str) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, POLICIES[name])
    for pack in range(epoch.steps * epoch.packs):
        batch = assemble(corpus.index, epoch, [pack])
        kept = None
        if share := POLICIES[name].drop_tokens:
            kept = drop_tokens((3, batch.epoch, *batch.segment_key()), batch.frames, batch.sizes, share)
        where = layout(batch.frames, batch.sizes, POLICIES[name].class_token, kept)
        assert where.tokens == epoch.pack_tokens[pack] == len(where.segment)
        assert where.cu_seqlens[-1] == where.tokens


def test_the_standard_ast_pads_with_frames_of_zero(corpus) -> None:
    """As AST does it: the filter banks of the whole clip, cut, or followed by 0.0, up to the fixed length."""
    epoch = plan_epoch(corpus.index.table(), 0, 0, Policy(packs=4, clips=12, crop_frames=96, random_crop=False))
    batch = assemble(corpus.index, epoch, list(range(epoch.packs)))
    padded = 0
    for found, row in zip(spectrogram(batch, pad_with="zero").split(96), batch.row.tolist()):
        samples = corpus.waveforms[row]
        wave = np.concatenate([mean_free(samples[: 95 * 160 + 400].astype(float)), np.zeros(16 * 160 + 400)])
        own = max(1 + (len(samples) - 400) // 160, 16)  # under 16 frames are padded in the waveform to exactly 16
        mel = oracle(wave, 160)[: min(own, 96)]
        expected = F.pad(mel, (0, 0, 0, 96 - len(mel)))
        assert (found - expected).abs().max() <= 1e-4
        padded += own < 96
    assert padded > 10
    silence = spectrogram(batch)
    assert (silence.split(96)[0] != 0).any()


@pytest.mark.parametrize("pad_with", ["silence", "zero"])
def test_mixtures_are_sums_at_equal_power_and_each_half_is_heard_alone(corpus, pad_with: str) -> None:
    """Cut, brought to one power and added up by hand."""
    fixed = pad_with == "zero"
    policy = Policy(
        packs=4, clips=4, views=2, crop_frames=64, pad=fixed, hops=(160, 240), pools=(1, 2), mixtures=0.7
    )  # fmt: skip
    epoch = plan_epoch(corpus.index.table(), 3, 0, policy)
    batch = assemble(corpus.index, epoch, list(range(epoch.packs)))
    own, mixed, partners = mixtures(batch, pad_with=pad_with)
    plain = plan_epoch(corpus.index.table(), 3, 0, replace(policy, mixtures=0.0))
    assert torch.equal(own, spectrogram(assemble(corpus.index, plain, list(range(plain.packs))), pad_with=pad_with))
    alone, together = (each.split(list(batch.sizes)) for each in (own, mixed))
    pieces = iter(partners.split([size for size in batch.partner_sizes if size]))
    draws = [n for n in range(int(epoch.pack_offset[epoch.packs])) for _ in range(2)]
    shorter = 0
    for segment, n in enumerate(draws):
        if epoch.partner[n] < 0:
            assert torch.equal(alone[segment], together[segment])
            continue
        view, hop, frames = segment % 2, int(batch.hop[segment]), batch.sizes[segment]
        pool, heard = batch.pools[segment], batch.partner_sizes[segment]
        shorter += heard < frames
        start, length = int(epoch.start[n, view]), int(epoch.length[n, view])
        first, count = int(epoch.partner_start[n, view]), int(epoch.partner_length[n, view])
        one = mean_free(corpus.waveforms[int(epoch.row[n])][start : start + length].astype(float))
        other = mean_free(corpus.waveforms[int(epoch.partner[n])][first : first + count].astype(float))
        other *= np.clip(one.std() / other.std(), 0.1, 10)
        both, lone = (np.zeros((size * pool - 1) * hop + 400) for size in (frames, heard))
        both[:length] = one
        both[:count] += other
        lone[:count] = other
        for wave, found, own_samples in ((both, together[segment], length), (lone, next(pieces), count)):
            mel = F.avg_pool1d(oracle(wave, hop).T[None], pool)[0].T
            if fixed:
                mel[max((1 + (own_samples - 400) // hop) // pool, 16) :] = 0.0
            assert found.shape == mel.shape
            assert (found - mel).abs().max() <= 1e-2
            assert (found - mel).abs().mean() <= 1e-4
    assert shorter > 1
    exact = mixtures(batch, "exact", pad_with)
    for name, value in zip(("own", "mixed", "partners"), (own, mixed, partners)):
        assert (getattr(exact, name) - value).abs().max() <= 1e-3, name
