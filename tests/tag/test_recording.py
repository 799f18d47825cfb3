from __future__ import annotations

import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from gamut.audio.decode import read_audio
from gamut.errors import AudioError
from gamut.tag.recording import Recording
from tests.lacking import needs_ffmpeg


def noise(seconds: float, rate: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * 440 * time)[:, None] + rng.normal(0.0, 0.05, (len(time), channels))


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [("a.wav", 16000, 1), ("b.flac", 44100, 2), ("c.ogg", 22050, 1), ("d.wav", 8000, 3), ("e.mp3", 44100, 2)],
)
def test_a_stream_is_the_file_read_and_resampled_whole(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(23.4, rate, channels), rate)
    audio, found = read_audio(path)
    whole = audio.mean(0, dtype=np.float32)
    whole = whole if found == 16000 else soxr.resample(whole, found, 16000, quality="HQ")
    recording = Recording(path)
    for _ in range(2):  # as often as asked
        stream = np.concatenate(list(recording.blocks()))
        assert len(stream) == recording.samples == len(whole)
        np.testing.assert_array_equal(stream, whole)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for minute in range(8):
            file.write(noise(60, 16000, 1, minute)[:, 0])
    tracemalloc.start()
    try:
        recording = Recording(path)
        assert recording.seconds == 480
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 480 * 16000 * 4 / 4  # a quarter of the samples


def damaged(path: Path, how: str) -> None:
    soundfile.write(path, noise(12, 16000, 1), 16000, "FLOAT" if path.suffix == ".wav" else None)
    content = bytearray(path.read_bytes())
    if how == "empty":
        content = bytearray()
    elif how == "truncated":
        del content[len(content) // 2 :]
    elif how == "not_finite":
        content[-4:] = np.array([np.nan], np.float32).tobytes()
    elif how == "unreadable":
        content[:] = b"not a sound" * 99
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("x.wav", "empty"),
        ("x.wav", "truncated"),
        ("x.wav", "not_finite"),
        ("x.wav", "unreadable"),
        ("x.mp3", "truncated"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_name(tmp_path: Path, name: str, how: str) -> None:
    damaged(tmp_path / name, how)
    with pytest.raises(AudioError, match=name) as raised:
        Recording(tmp_path / name)
    assert raised.value.reason == how


def test_no_file_and_no_sample(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav cannot be read"):
        Recording(tmp_path / "none.wav")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    with pytest.raises(AudioError, match="no sample"):
        Recording(tmp_path / "silent.wav")


@needs_ffmpeg
def test_a_video_goes_through_ffmpeg(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise(3, 16000, 1), 16000)
    words = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "x.wav"), "-c:a", "flac", str(tmp_path / "x.mkv")]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    with Recording(tmp_path / "x.mkv") as recording:
        both = [np.concatenate(list(one.blocks())) for one in (recording, Recording(tmp_path / "x.wav"))]
        np.testing.assert_array_equal(*both)
        folder = recording._file.parent
        assert folder.exists()
    assert not folder.exists()
