"""Recordings that are cut, damaged or joined, in formats whose decoders do not say so."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.audio import mpeg
from gamut.audio.blocks import waveform
from gamut.audio.decode import read_audio
from gamut.audio.segment import load
from gamut.errors import AudioError
from gamut.tag.recording import Recording
from tests.lacking import needs_ffmpeg

RATE = 16_000
SECONDS = 8
VIDEO = ("-f", "lavfi", "-i", f"testsrc=size=64x64:rate=10:duration={SECONDS}")
CODING = {
    "x.mp4": ("-movflags", "faststart", "-c:a", "aac"),
    "x.m4a": ("-movflags", "faststart", "-c:a", "aac"),
    "x.webm": ("-c:a", "libopus", "-c:v", "libvpx"),
    "x.mkv": ("-c:a", "aac"),
    "x.mka": ("-c:a", "flac"),
    "x.avi": ("-c:a", "mp3"),
    "x.flv": ("-ar", "44100", "-c:a", "aac"),
    "x.wma": (),
}


def made(folder: Path, name: str, *more: str) -> Path:
    time = np.arange(SECONDS * RATE) / RATE
    soundfile.write(folder / "tone.wav", np.sin(2 * np.pi * (300 + 100 * time) * time) / 2, RATE)
    picture = () if name.endswith(("m4a", "mka", "wma")) else VIDEO
    words = ["ffmpeg", "-v", "error", "-y", "-i", str(folder / "tone.wav"), *picture, *CODING[name], *more]
    subprocess.run([*words, str(folder / name)], check=True, stdin=subprocess.DEVNULL)
    return folder / name


@needs_ffmpeg
@pytest.mark.parametrize("name", CODING)
def test_a_cut_file_is_not_taken_as_a_whole_one(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, name)
    found = waveform(load(path), name).samples
    assert len(found) == pytest.approx(SECONDS * RATE, abs=0.1 * RATE)
    whole = path.read_bytes()
    for share in (0.55, 0.8):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(AudioError, match=r"This audio is cut off|ffmpeg cannot read This audio") as caught:
            waveform(load(path), name)
        assert caught.value.reason in ("truncated", "corrupt")
        with pytest.raises(AudioError, match=rf"{name}.* cut off|ffmpeg cannot read .*{name}"):
            Recording(path)


@needs_ffmpeg
def test_damage_inside_is_not_left_out_in_silence(tmp_path: Path) -> None:
    path = made(tmp_path, "x.webm")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 600] = bytes(range(200)) * 3
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"audio is cut off or damaged\. ffmpeg says: "):
        waveform(load(path), "x")


@needs_ffmpeg
def test_joined_recordings_are_whole_and_pictures_alone_have_no_sound(tmp_path: Path) -> None:
    path = made(tmp_path, "x.webm")
    (tmp_path / "both.webm").write_bytes(path.read_bytes() * 2)
    found = waveform(load(tmp_path / "both.webm"), "x").samples
    assert len(found) == pytest.approx(2 * SECONDS * RATE, abs=0.2 * RATE)
    with pytest.raises(AudioError, match="holds no sound") as caught:
        waveform(load(made(tmp_path, "x.mp4", "-an")), "x")
    assert caught.value.reason == "empty"


def mp3(rate: int, channels: int) -> bytes:
    audio = np.random.default_rng(rate).normal(scale=0.1, size=(2 * rate, channels))
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format="MP3")
    return file.getvalue()


def bare(payload: bytes) -> bytes:
    begin = mpeg.first_frame(payload)
    assert begin is not None
    return payload[begin + next(mpeg.stream(payload, begin)).size :]


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((44_100, 1), (44_100, 2), "from 1 to 2 channels"),
        ((44_100, 2), (44_100, 1), "from 2 to 1 channels"),
        ((44_100, 2), (22_050, 2), "another sample rate"),
        ((16_000, 1), (48_000, 1), "another sample rate"),
    ],
)
def test_an_mp3_that_changes_inside_is_refused(
    first: tuple[int, int], second: tuple[int, int], said: str, headers: bool, tmp_path: Path
) -> None:
    one, two = mp3(*first), mp3(*second)
    payload = one + b"ID3\4\0\0\0\0\0\x20" + bytes(32) + two if headers else bare(one) + bare(two)
    with pytest.raises(AudioError, match=f"{said}|frames are missing") as caught:
        read_audio(payload)
    assert caught.value.reason in ("format", "corrupt")
    (tmp_path / "x.mp3").write_bytes(payload)
    with pytest.raises(AudioError, match=r"x\.mp3"):
        Recording(tmp_path / "x.mp3")
    for alone in (one, two):
        read_audio(alone + b"TAG" + bytes(range(125)))
        read_audio(bare(alone))
