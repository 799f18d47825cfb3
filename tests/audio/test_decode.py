"""Reading, mixing down, resampling, encoding and decoding, against soundfile, soxr and the samples themselves."""

from __future__ import annotations

import io
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.audio import decode, mpeg
from gamut.audio.blocks import Way
from gamut.audio.decode import decode_flac, encode_flac, flac_header, read_audio, to_int16_16k
from gamut.audio.longest import CLIP
from gamut.audio.segment import Segment, load
from gamut.audio.sound import sound
from gamut.errors import AudioError
from gamut.tag.recording import Recording

# container, subtype, rate: one of each way in which a container says how long it is
FORMATS = [
    ("WAV", "PCM_16", 44100),
    ("WAV", "FLOAT", 22050),
    ("WAVEX", "PCM_24", 48000),
    ("AIFF", "PCM_16", 44100),
    ("AU", "PCM_16", 44100),
    ("W64", "PCM_16", 44100),
    ("RF64", "PCM_16", 44100),
    ("FLAC", "PCM_16", 44100),
    ("OGG", "VORBIS", 44100),
    ("OGG", "OPUS", 48000),
    ("MP3", "MPEG_LAYER_III", 44100),
    ("MP3", "MPEG_LAYER_III", 16000),
]
ids = [f"{container}-{subtype}-{rate}" for container, subtype, rate in FORMATS]


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=(samples, channels)).astype(np.float32)


def encoded(audio: np.ndarray, rate: int, container: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=container, subtype=subtype)
    return file.getvalue()


def reason(payload: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(payload)
    return caught.value.reason


@pytest.mark.parametrize(("container", "subtype", "rate"), FORMATS, ids=ids)
def test_every_container_reads_as_soundfile_reads_it(container: str, subtype: str, rate: int) -> None:
    payload = encoded(noise(30_000, 2), rate, container, subtype)
    audio, found = read_audio(payload)
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        expected = file.read(dtype="float32", always_2d=True)
    assert (found, audio.dtype) == (rate, np.float32)
    np.testing.assert_array_equal(audio, expected.T)


@pytest.mark.parametrize(("container", "subtype", "rate"), FORMATS, ids=ids)
@pytest.mark.parametrize("lost", [1, 100, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_never_read_short(container: str, subtype: str, rate: int, lost: float) -> None:
    payload = encoded(noise(30_000, 2), rate, container, subtype)
    cut = payload[: len(payload) - (lost if isinstance(lost, int) else int(lost * len(payload)))]
    assert reason(cut) in ("corrupt" if container == "FLAC" else "truncated", "unreadable")


@pytest.mark.parametrize(("container", "subtype", "rate"), FORMATS, ids=ids)
def test_bytes_behind_the_audio_do_no_harm(container: str, subtype: str, rate: int) -> None:
    payload = encoded(noise(30_000, 2), rate, container, subtype)
    audio, _ = read_audio(payload)
    tagged, _ = read_audio(payload + b"TAG" + bytes(125))
    np.testing.assert_array_equal(tagged[:, : audio.shape[1]], audio)


@pytest.mark.parametrize("container", ["FLAC", "OGG"])
@pytest.mark.parametrize("seed", range(8))
def test_one_flipped_bit_is_found_where_the_container_has_checksums(container: str, seed: int) -> None:
    payload = bytearray(encoded(noise(30_000), 44100, container))
    rng = np.random.default_rng(seed)
    begin = 0 if container == "OGG" else 200  # a FLAC's comments have none
    payload[rng.integers(begin, len(payload))] ^= 1 << rng.integers(8)
    assert reason(bytes(payload)) in ("corrupt", "truncated", "unreadable")


def test_a_lost_ogg_page_or_mp3_frame_in_the_middle_is_found() -> None:
    ogg = encoded(noise(200_000), 44100, "OGG")
    pages = [at for at in range(len(ogg)) if ogg.startswith(b"OggS", at)]
    middle = len(pages) // 2
    assert reason(ogg[: pages[middle]] + ogg[pages[middle + 1] :]) == "corrupt"
    mp3 = encoded(noise(100_000), 44100, "MP3")
    assert reason(mp3[:10_000] + mp3[10_100:]) == "corrupt"


def test_ogg_streams_joined_together_are_not_read_as_the_first_of_them() -> None:
    assert reason(encoded(noise(9_000, seed=0), 44100, "OGG") + encoded(noise(9_000, seed=1), 44100, "OGG")) == "format"


@settings(max_examples=60)
@given(st.sampled_from(FORMATS), st.data())
def test_rotten_headers_give_audio_or_a_reason_and_nothing_else(
    form: tuple[str, str, int], data: st.DataObject
) -> None:
    container, subtype, rate = form
    payload = bytearray(encoded(noise(3_000), rate, container, subtype))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, min(len(payload), 120) - 1))] = data.draw(st.integers(0, 255))
    try:
        with mock.patch.dict(os.environ, PATH=""):  # without ffmpeg, a process for each
            audio, found = read_audio(bytes(payload))
        to_int16_16k(audio, found)
    except AudioError as error:
        # too_long: a header may say that there are hours
        reasons = ("unreadable", "truncated", "corrupt", "empty", "not_finite", "format", "too_long")
        assert error.reason in reasons  # noqa: PT017


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (44_100, 1), (22_050, 2), (16_000, 1), (8_000, 1)])
def test_an_mp3_that_does_not_say_how_long_it_is_is_read_to_its_end(rate: int, channels: int) -> None:
    """libsndfile guesses its length from the first frame, and so reads it short without an error, or not at all."""
    audio = noise(3 * rate, channels) * np.linspace(0, 1, 3 * rate, dtype=np.float32)[:, None]
    payload = encoded(audio, rate, "MP3")
    assert mpeg.unannounced(payload) is None
    whole, _ = read_audio(payload)
    begin = mpeg.first_frame(payload)
    assert begin is not None
    header, *others = mpeg.stream(payload, begin)
    headerless = payload[begin + header.size :]
    with soundfile.SoundFile(io.BytesIO(headerless)) as file:
        assert file.frames != len(others) * header.samples
    found, found_rate = read_audio(headerless)
    assert found_rate == rate
    assert found.shape == (channels, len(others) * header.samples)
    delay = 1105  # of the encoder and decoder: only the header says that it is to be cut off
    assert np.abs(found[:, delay : delay + len(audio)] - whole).max() < 1e-4
    joined, _ = read_audio(payload + payload)
    assert joined.shape[1] > 1.99 * len(audio)
    for lost in range(1, 500, 50):
        assert reason(headerless[:-lost]) == "truncated"


def test_what_is_no_audio_has_a_reason_and_a_name(tmp_path) -> None:
    assert reason(b"") == "empty"
    assert reason(b"no sound at all, though long enough to be one") == "unreadable"
    assert reason(encoded(noise(0), 16000, "WAV")) == "empty"
    for bad in (np.nan, np.inf, -np.inf):
        audio = noise(1_000)
        audio[500] = bad
        assert reason(encoded(audio, 16000, "WAV", "FLOAT")) == "not_finite"
    path = tmp_path / "dog.wav"
    path.write_bytes(b"")
    with pytest.raises(AudioError, match=r"dog\.wav has no bytes"):
        read_audio(path)
    with pytest.raises(FileNotFoundError):  # an I/O failure says nothing of the clip
        read_audio(tmp_path / "cat.wav")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF])
def test_a_wav_whose_size_was_never_stated_is_read_to_its_end(size: int, tmp_path: Path) -> None:
    whole = encoded(noise(1_000), 16000, "WAV")
    payload, at = bytearray(whole), whole.index(b"data") + 4
    payload[at : at + 4] = size.to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(payload)
    for source in (bytes(payload), tmp_path / "x.wav"):
        way = Way()
        (block, _), *more = sound(source, "x", CLIP, way)
        assert (block.shape, more, way.unpatched) == ((1_000, 1), [], True)
        np.testing.assert_array_equal(block.T, read_audio(whole)[0])
    part = np.concatenate([block for block, _ in load(tmp_path / "x.wav", Segment(0.01, 0.05))])
    np.testing.assert_array_equal(part.T, read_audio(whole)[0][:, 160:800])
    with Recording(tmp_path / "x.wav") as recording:
        assert (recording.samples, recording.way.unpatched) == (1_000, True)


def test_a_wav_of_no_sample_is_empty_whatever_follows() -> None:
    empty = encoded(noise(0), 16000, "WAV")
    assert empty[-4:] == bytes(4)
    for tail in (b"", b"LIST\4\0\0\0INFO", b"LIST\4\0\0\0INFOid3 \2\0\0\0xx"):
        assert reason(empty + tail) == "empty"


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_resampling_is_soxr_of_the_mean_of_the_channels(rate: int) -> None:
    audio = noise(rate, 3).T
    waveform, saturated = to_int16_16k(audio, rate)
    expected = soxr.resample(audio.astype(np.float64).mean(0), rate, 16_000, quality="HQ") * 32768
    assert (waveform.dtype, waveform.shape, saturated) == (np.int16, (16_000,), 0)
    assert np.abs(waveform - expected).max() < 0.55  # half a step of rounding, and float32 against float64


def test_a_tone_survives_resampling_and_one_above_8_khz_does_not() -> None:
    time = np.arange(44_100) / 44_100
    for hertz, level in ((1_000, 0.5), (7_000, 0.5), (9_500, 0.0)):
        waveform, _ = to_int16_16k(0.5 * np.sin(2 * np.pi * hertz * time)[None].astype(np.float32), 44_100)
        inside = waveform[2_000:-2_000] / 32768
        assert np.abs(inside).max() == pytest.approx(level, abs=2e-3)


def test_sixteen_bit_audio_at_16_khz_passes_bit_by_bit() -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 5_000).astype(np.int16)
    samples[:2] = -32768, 32767
    payload = encoded(samples, 16_000, "WAV", "PCM_16")
    waveform, saturated = to_int16_16k(*read_audio(payload))
    np.testing.assert_array_equal(waveform, samples)
    assert saturated == 0


def test_peaks_are_held_to_the_range_and_counted() -> None:
    audio = np.array([[0.0, 1.0, 1.5, -1.0, -1.5, 32767.4 / 32768, 0.49 / 32768, 1.5 / 32768]], np.float32)
    waveform, saturated = to_int16_16k(audio, 16_000)
    assert waveform.tolist() == [0, 32767, 32767, -32768, -32768, 32767, 0, 2]
    assert saturated == 3  # 1.0 is 32,768, one too many


def test_odd_audio_is_handled() -> None:
    assert to_int16_16k(np.zeros((1, 44_100), np.float32), 44_100)[0].any() == np.False_  # silence
    eight = noise(1_000, 8)
    waveform, _ = to_int16_16k(*read_audio(encoded(eight, 16_000, "WAV", "FLOAT")))
    np.testing.assert_array_equal(waveform, np.rint(eight.T.mean(0, dtype=np.float32) * 32768).astype(np.int16))
    assert len(to_int16_16k(noise(480).T, 48_000)[0]) == 160  # 0.01 s
    assert len(to_int16_16k(noise(1).T, 16_000)[0]) == 1
    for audio, rate, why in ((noise(2).T, 192_000, "empty"), (noise(9).T, 1, "format"), (noise(9).T, 10**8, "format")):
        with pytest.raises(AudioError) as caught:
            to_int16_16k(audio, rate)
        assert caught.value.reason == why


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 160, 4_095, 4_096, 4_097, 160_000])
def test_flac_is_lossless_at_any_length_and_equal_to_soundfile(samples: int) -> None:
    waveform = np.random.default_rng(samples).integers(-32768, 32768, samples).astype(np.int16)
    payload = encode_flac(waveform)
    assert payload == encode_flac(waveform)
    assert flac_header(payload) == (16_000, 1, samples)
    decoded = decode_flac(payload, samples)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, waveform)
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(payload), dtype="int16")[0], waveform)


def test_real_recordings_decode_to_the_bits_of_soundfile(shared_data) -> None:
    for path in sorted((shared_data / "esc10" / "audio").iterdir())[::25]:
        waveform, _ = to_int16_16k(*read_audio(path))
        payload = encode_flac(waveform)
        np.testing.assert_array_equal(decode_flac(payload, len(waveform)), waveform)
        np.testing.assert_array_equal(soundfile.read(io.BytesIO(payload), dtype="int16")[0], waveform)


def test_the_fallback_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = (noise(50_000)[:, 0] * 32767).astype(np.int16)
    payload = encode_flac(waveform)
    fast = decode_flac(payload, len(waveform))

    def unable(data: bytes) -> None:
        raise decode.miniaudio.DecodeError("no")

    monkeypatch.setattr(decode.miniaudio, "flac_read_s16", unable)
    np.testing.assert_array_equal(decode_flac(payload, len(waveform)), fast)


def test_a_damaged_flac_gives_its_samples_or_a_reason_never_others() -> None:
    waveform = (noise(20_000)[:, 0] * 32767).astype(np.int16)
    payload = encode_flac(waveform)
    rng = np.random.default_rng(0)
    reasons = set()
    for _ in range(300):
        damaged = bytearray(payload)
        damaged[rng.integers(len(payload))] ^= 1 << rng.integers(8)
        try:
            np.testing.assert_array_equal(decode_flac(bytes(damaged), len(waveform)), waveform)
        except AudioError as error:
            reasons.add(error.reason)
    for cut in (0, 3, 41, 42, 100, len(payload) // 2, len(payload) - 1):
        with pytest.raises(AudioError) as caught:
            decode_flac(payload[:cut], len(waveform))
        reasons.add(caught.value.reason)
    assert reasons <= {"corrupt", "truncated", "unreadable", "length", "format"}
    assert {"corrupt", "unreadable"} <= reasons


def test_a_flac_of_another_length_rate_or_width_is_refused() -> None:
    payload = encode_flac(np.zeros(1_000, np.int16))
    for samples in (999, 1_001):
        with pytest.raises(AudioError) as caught:
            decode_flac(payload, samples)
        assert caught.value.reason == "length"
    for other in (encoded(noise(1_000), 44_100, "FLAC"), encoded(noise(1_000, 2), 16_000, "FLAC")):
        with pytest.raises(AudioError) as caught:
            decode_flac(other, 1_000)
        assert caught.value.reason == "format"
    bomb = bytearray(payload)
    bomb[21] |= 0x0F  # 64 thousand million samples
    with pytest.raises(AudioError) as caught:
        decode_flac(bytes(bomb), 1_000)
    assert caught.value.reason == "length"


def test_only_int16_mono_is_encoded() -> None:
    for wrong in (np.zeros(10, np.float32), np.zeros((10, 2), np.int16)):
        with pytest.raises(TypeError, match=r"int16 \[n\]"):
            encode_flac(wrong)
