"""The log-mel against torchaudio's Kaldi features, on real and made-up sound, alone and in ragged batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from gamut.audio import logmel
from gamut.audio import waveform as waveforms
from gamut.audio.logmel import RunningStatistics, log_mel, normalise, patches, unpatch
from tests.close import assert_close

TOLERANCE = 1e-4


def oracle(samples: torch.Tensor, hop: int, frames: int) -> torch.Tensor:
    """torchaudio's Kaldi filter banks as the papers call them, written out here a second time."""
    wave = samples.float() / 32768.0
    wave = wave - wave.mean()
    needed = (frames - 1) * hop + 400
    wave = torch.nn.functional.pad(wave, (0, max(0, needed - len(wave))))[:needed]
    return kaldi.fbank(
        wave[None],
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=hop / 16.0 + 1e-6,
    )


def batch(clips: list[torch.Tensor], hops: list[int], sizes: list[int]) -> tuple:
    """A ragged batch of clips, each padded with zeros, or cut, to what its frames need."""
    pieces, length = [], []
    for clip, hop, size in zip(clips, hops, sizes):
        needed = (size - 1) * hop + 400
        own = clip[:needed]
        pieces.append(torch.cat([own, own.new_zeros(needed - len(own))]))
        length.append(len(own))
    offset = torch.tensor([0, *np.cumsum([len(piece) for piece in pieces])], dtype=torch.int64)
    waveform = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int16)
    return waveform, offset, torch.tensor(length), torch.tensor(hops), torch.tensor(sizes), tuple(sizes)


def noise(samples: int, seed: int, loudness: float = 3000.0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(0.0, loudness, samples)
    return torch.from_numpy(values.round().clip(-32768, 32767).astype(np.int16))


@pytest.fixture(scope="module")
def sounds(shared_data: Path) -> list[torch.Tensor]:
    """40 real clips of 5 s, int16 at 16 kHz."""
    clips = []
    for path in sorted((shared_data / "esc10" / "audio").iterdir())[::10][:40]:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        resampled = soxr.resample(samples.mean(axis=1), rate, 16000)
        clips.append(torch.from_numpy((resampled * 32768).round().clip(-32768, 32767).astype(np.int16)))
    return clips


def test_real_sound_equals_kaldi(sounds: list[torch.Tensor]) -> None:
    sizes = [1 + (len(clip) - 400) // 160 for clip in sounds]
    given = batch(sounds, [160] * len(sounds), sizes)
    # The oracle's mean is over the samples that are used, as a crop's is.
    expected = torch.cat([oracle(c[: (f - 1) * 160 + 400], 160, f) for c, f in zip(sounds, sizes)])
    assert torch.equal(log_mel(*given, mode="exact"), expected)
    assert (log_mel(*given, mode="fast") - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_ragged_batch_with_a_hop_a_segment(mode: str, sounds: list[torch.Tensor]) -> None:
    clips = [*sounds[:3], noise(3000, 0), sounds[4][:500], noise(100, 1), sounds[5]]
    hops, sizes = [160, 192, 640, 160, 224, 608, 176], [496, 400, 112, 16, 16, 16, 448]
    expected = [oracle(c[: (f - 1) * s + 400], s, f) for c, s, f in zip(clips, hops, sizes)]
    result = log_mel(*batch(clips, hops, sizes), mode=mode)
    assert result.dtype == torch.float32
    for segment, reference in zip(result.split(sizes), expected):
        if mode == "exact":
            assert torch.equal(segment, reference)
        assert (segment - reference).abs().max() <= TOLERANCE


@pytest.mark.parametrize("hop", [160 * c // 10 for c in range(10, 41, 2)])
def test_exact_at_every_hop_of_elastic_training(hop: int) -> None:
    clip = noise(16000, hop)
    frames = 1 + (len(clip) - 400) // hop
    own = (frames - 1) * hop + 400
    given = batch([clip], [hop], [frames])
    assert torch.equal(log_mel(*given, mode="exact"), oracle(clip[:own], hop, frames))
    assert (log_mel(*given) - oracle(clip[:own], hop, frames)).abs().max() <= TOLERANCE


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(1, 20000), st.sampled_from([160, 192, 333, 640]), st.integers(1, 6)),
        min_size=1,
        max_size=5,
    )
)
def test_a_batch_is_its_segments(segments: list[tuple[int, int, int]]) -> None:
    clips = [noise(length, i) for i, (length, _, _) in enumerate(segments)]
    hops, sizes = [s for _, s, _ in segments], [16 * f for _, _, f in segments]
    whole = log_mel(*batch(clips, hops, sizes))
    alone = torch.cat([log_mel(*batch([c], [s], [f])) for c, s, f in zip(clips, hops, sizes)])
    assert (whole - alone).abs().max() <= 1e-5


def test_longer_than_a_chunk() -> None:
    clip = noise(30 * 16000, 7)
    frames = 1 + (len(clip) - 400) // 160
    assert frames > logmel.CHUNK_CPU
    own = clip[: (frames - 1) * 160 + 400]
    assert (log_mel(*batch([clip], [160], [frames])) - oracle(own, 160, frames)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_silence_constants_and_nothing(mode: str) -> None:
    clips = [torch.zeros(5000, dtype=torch.int16), torch.full((5000,), 32767, dtype=torch.int16), noise(1, 3)]
    result = log_mel(*batch(clips, [160] * 3, [16] * 3), mode=mode)
    assert torch.isfinite(result).all()
    # 1.1920928955078125e-07 is the smallest energy Kaldi knows.
    assert_close(result[:16], torch.full((16, 128), float(np.log(1.1920928955078125e-07))))
    assert log_mel(*batch([], [], []), mode=mode).shape == (0, 128)


def test_rest_of_a_segment_is_silence() -> None:
    """Whatever lies in the buffer after a clip's own samples does not count, nor does a neighbour."""
    waveform, offset, length, *rest = batch([noise(2000, 0), noise(9000, 1)], [160, 160], [32, 48])
    dirty = waveform.clone()
    dirty[2000 : int(offset[1])] = 12345
    for mode in ("fast", "exact"):
        clean = log_mel(waveform, offset, length, *rest, mode=mode)
        assert torch.equal(clean, log_mel(dirty, offset, length, *rest, mode=mode))


def test_sums_over_all_segments_equal_a_segment_at_a_time() -> None:
    waveform, offset, length, *_ = batch([noise(2000, 0), noise(9000, 1) + 500], [160, 160], [32, 48])
    once = waveforms.mean_free(waveform, offset, length)
    ragged = waveforms.mixed_ragged(waveform, offset, length)
    assert (once - ragged).abs().max() <= 1e-7


def test_mixing_all_segments_at_once_equals_a_segment_at_a_time() -> None:
    """And both equal the mixture by hand, whatever lies after a segment's own samples."""
    clips = [noise(2000, 0), noise(7000, 1) + 500, noise(2800, 2)]
    waveform, offset, length, *_ = batch(clips, [160] * 3, [32, 48, 16])
    others, shares = [noise(1500, 3), None, noise(2800, 4)], (0.25, 1.0, 0.6)
    partner = waveforms.Partner(
        torch.cat([other for other in others if other is not None]),
        torch.tensor([0, 1500, 1500, 4300]),
        torch.tensor(shares),
    )
    once = waveforms.mix(waveforms.mean_free(waveform, offset, length), offset, partner)
    ragged = waveforms.mixed_ragged(waveform, offset, length, partner)
    assert (once - ragged).abs().max() <= 1e-6
    expected = torch.zeros(len(waveform))
    for begin, share, own, other in zip(offset.tolist(), shares, clips, others):
        expected[begin : begin + len(own)] = share * (own / 32768.0 - (own / 32768.0).mean())
        if other is not None:
            expected[begin : begin + len(other)] += (1 - share) * (other / 32768.0 - (other / 32768.0).mean())
    assert (once - expected).abs().max() <= 1e-6


def test_stays_fp32_under_autocast() -> None:
    given = batch([noise(16000, 5)], [160], [96])
    with torch.autocast("cpu", torch.bfloat16):
        inside = log_mel(*given)
    assert torch.equal(inside, log_mel(*given))


def test_filters_equal_torchaudio() -> None:
    banks, _ = kaldi.get_mel_banks(128, 512, 16000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
    assert torch.equal(logmel.mel_weights()[:, :256], banks)
    assert not logmel.mel_weights()[:, 256].any()


def test_wrong_arguments_are_named() -> None:
    given = batch([noise(4000, 0)], [160], [16])
    with pytest.raises(ValueError, match="not 'slow'"):
        log_mel(*given, mode="slow")
    with pytest.raises(ValueError, match="must describe the same"):
        log_mel(*given[:-1], (16, 16))


def test_patches_are_time_major_and_invertible() -> None:
    frames = torch.arange(48 * 128, dtype=torch.float32).reshape(48, 128)
    cut = patches(frames)
    assert cut.shape == (24, 256)
    for number, t, f in ((0, 0, 0), (9, 3, 5), (23, 15, 15)):
        assert cut[number, 16 * t + f] == frames[number // 8 * 16 + t, number % 8 * 16 + f]
    assert torch.equal(unpatch(cut), frames)
    assert patches(frames[:0]).shape == (0, 256)
    assert unpatch(cut[:0]).shape == (0, 128)


def test_normalise_is_asts() -> None:
    assert normalise(torch.tensor(0.0), -4.2677393, 4.5689974).item() == pytest.approx(0.467, abs=1e-3)


def test_statistics_of_all_frames() -> None:
    pieces = [torch.randn(n, 128, generator=torch.Generator().manual_seed(n)) * 3 - 6 for n in (1, 40, 7, 0)]
    together, first, second = RunningStatistics(), RunningStatistics(), RunningStatistics()
    for i, piece in enumerate(pieces):
        together.add(piece)
        (first, second)[i % 2].add(piece)
    first.merge(second)
    everything = torch.cat(pieces).double().numpy()
    for seen in (together, first):
        assert seen.count == everything.size
        assert seen.mean == pytest.approx(everything.mean(), abs=1e-12)
        assert seen.std == pytest.approx(everything.std(), abs=1e-12)
    assert RunningStatistics().std == 0.0


def test_a_gpu_makes_few_plans_of_transforms() -> None:
    """Counted on the sizes alone: batches of any raggedness, transformed in few numbers of frames at once."""
    together = {logmel._together(frames) for frames in range(1, 3 * logmel.CHUNK_DEVICE, 37)}
    assert together == {1 << power for power in range(10, 17)}
    for frames in (1, 1023, 1025, 30_000, 65_536):
        assert frames <= logmel._together(frames) <= max(2 * frames, 1024)
