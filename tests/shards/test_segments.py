"""Segments of longer recordings, and files that need ffmpeg: a script that stands for it, and the real one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.audio import segment as segments
from gamut.audio.blocks import joined
from gamut.audio.segment import Segment
from gamut.errors import AudioError, ShardError
from tests.lacking import needs_ffmpeg

from .layouts import clips, convert, sound


def load(path: Path, segment: Segment | None = None) -> tuple[np.ndarray, int]:
    return joined(segments.load(path, segment), path.name)


FORMATS = [("x.wav", {}), ("x.flac", {}), ("x.aiff", {}), ("x.ogg", {}), ("x.mp3", {}), ("x.w64", {}), ("x.caf", {})]


@pytest.mark.parametrize(("name", "kinds"), FORMATS)
def test_a_segment_is_that_part_of_the_whole_file(tmp_path: Path, name: str, kinds: dict[str, str]) -> None:
    sound(tmp_path / name, 2.0, 22050, **kinds)
    whole, rate = load(tmp_path / name)
    for start, end, first, last in ((0.5, 1.25, 11025, 27562), (0.0, None, 0, whole.shape[1]), (1.9, 2.6, 41895, None)):
        part, part_rate = load(tmp_path / name, Segment(start, end))
        np.testing.assert_array_equal(part, whole[:, first:last])
        assert part_rate == rate == 22050
    quiet, _ = load(tmp_path / name, Segment(0.5, 1.0, gain=0.25))
    np.testing.assert_array_equal(quiet, whole[:, 11025:22050] * np.float32(0.25))


def test_only_the_segment_is_read(tmp_path: Path) -> None:
    """Damage elsewhere in the recording does not matter to a clip."""
    sound(tmp_path / "x.wav", 4.0)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    (tmp_path / "cut.wav").write_bytes(content[: 44 + 3 * 32000])
    part, _ = load(tmp_path / "cut.wav", Segment(1.0, 2.0))
    np.testing.assert_array_equal(part, load(tmp_path / "x.wav", Segment(1.0, 2.0))[0])


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        (Segment(3.0, 4.0), "empty"),
        (Segment(1.0, 3.5), "truncated"),
        (Segment(1.0, 1.0), "empty"),
        (Segment(-1.0, 1.0), "empty"),
    ],
)
def test_a_segment_that_is_not_in_its_recording(tmp_path: Path, segment: Segment, reason: str) -> None:
    sound(tmp_path / "x.wav", 2.0)
    with pytest.raises(AudioError) as caught:
        load(tmp_path / "x.wav", segment)
    assert caught.value.reason == reason


def test_a_file_that_is_no_sound_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    (tmp_path / "empty.wav").touch()
    for name, reason in (("x.wav", "unreadable"), ("empty.wav", "empty")):
        with pytest.raises(AudioError) as caught:
            load(tmp_path / name, Segment(0, 1))
        assert caught.value.reason == reason
    for segment in (Segment(0, 1), Segment(0, 1, member="x", rate=24000), None):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "gone.wav", segment)


FAKE = """#!/bin/sh
printf '%s\\n' "$@" >> "$0.arguments"
[ "$1" = -version ] && echo "ffmpeg version fake Copyright (c) nobody" && exit 0
case "$*" in
  *silent*) echo "Stream map '0:a:0' matches no streams." >&2; exit 234;;
  *damaged*) echo "Invalid data found when processing input" >&2; exit 1;;
  *killed*) kill -9 $$;;
esac
for out; do :; done
exec cp "$(dirname "$0")/answer.wav" "${out#file:}"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called ffmpeg that answers with a WAV; what it was asked is in ffmpeg.arguments beside it."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    sound(program.parent / "answer.wav", 0.2, 44100)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_video_goes_through_ffmpeg(tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    for name in ("dog/-one; rm *.MP4", "dog/two.webm", "cat/silent.m4a", "cat/damaged.mka", "cat/three.wav"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(b"video")
    (src / "cat" / "none.mkv").touch()
    sound(src / "cat" / "three.wav")
    assert convert("folder", src, dst) == 0
    assert sorted(clips(dst)) == ["cat/three", "dog/-one__rm__", "dog/two"]
    out = capsys.readouterr().out
    assert "1 corrupt" in out
    assert "2 empty" in out
    asked = Path(f"{fake}.arguments").read_text().splitlines()
    assert f"file:{src}/dog/-one; rm *.MP4" in asked  # one argument, whatever is in it
    assert asked[asked.index("-protocol_whitelist") + 1] == "file,pipe"
    assert '"ffmpeg": "ffmpeg version fake"' in (dst / "index" / "convert.json").read_text()


def test_a_segment_of_a_video_is_cut_by_ffmpeg(tmp_path: Path, fake: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"video")
    sound(fake.parent / "answer.wav", 9.5, 8000)  # half a second less than asked for
    audio, rate = load(tmp_path / "x.mp4", Segment(12.5, 22.5, gain=0.5))
    assert (rate, audio.shape) == (8000, (1, 76000))
    asked = Path(f"{fake}.arguments").read_text().splitlines()
    at = asked.index("-i")
    before, behind = asked[:at], asked[at:]
    assert float(before[before.index("-ss") + 1]) + float(behind[behind.index("-ss") + 1]) == 12.5
    assert behind[behind.index("-t") + 1] == "10.000000"


def test_a_killed_ffmpeg_says_nothing_of_the_clip(tmp_path: Path, fake: Path) -> None:
    (tmp_path / "killed.mp4").write_bytes(b"video")
    with pytest.raises(ShardError, match=r"killed by signal 9 at .*killed\.mp4"):
        load(tmp_path / "killed.mp4")


def test_without_ffmpeg_it_is_said_before_anything_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    sound(tmp_path / "src" / "dog" / "one.wav")
    (tmp_path / "src" / "dog" / "two.webm").write_bytes(b"video")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert convert("folder", tmp_path / "src", tmp_path / "set") == 2
    said = capsys.readouterr().err
    assert "two.webm can only be read through ffmpeg, which is not on the PATH. Install it" in said
    assert not list((tmp_path / "set").rglob("*.tar"))


@needs_ffmpeg
@pytest.mark.parametrize("name", ["x.mkv", "x.m4a", "x.webm", "x.mp4"])
def test_the_real_ffmpeg(tmp_path: Path, name: str) -> None:
    rate = 48000
    time = np.arange(2 * rate) / rate
    tones = np.sin(2 * np.pi * np.where(time < 1, 440, 880) * time) / 2
    soundfile.write(tmp_path / "x.wav", tones, rate)
    coding = ["-c:a", "flac"] if name.endswith("mkv") else ["-b:a", "192k"]
    picture = [] if name.endswith("m4a") else ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=10:duration=2"]
    words = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "x.wav"), *picture, *coding, str(tmp_path / name)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    audio, found = load(tmp_path / name)
    assert found == rate
    assert abs(audio.shape[1] - 2 * rate) <= 2048
    assert load(tmp_path / name, Segment(1.5, 2.5))[0].shape[1] == pytest.approx(rate // 2, abs=2048)
    for segment, reason in ((Segment(1.0, 5.0), "truncated"), (Segment(4.0, 5.0), "empty")):
        with pytest.raises(AudioError) as caught:
            load(tmp_path / name, segment)
        assert caught.value.reason == reason
    part, _ = load(tmp_path / name, Segment(1.25, 1.75))
    assert abs(part.shape[1] - rate // 2) <= 1
    spectrum = np.abs(np.fft.rfft(part[0] * np.hanning(part.shape[1])))
    assert np.argmax(spectrum) * rate / part.shape[1] == pytest.approx(880, abs=3)
    if name.endswith("mkv"):  # nothing lost
        np.testing.assert_array_equal(audio, soundfile.read(tmp_path / "x.wav", dtype="float32", always_2d=True)[0].T)
    (tmp_path / f"silent{name}").write_bytes(b"no video at all")
    with pytest.raises(AudioError):
        load(tmp_path / f"silent{name}")


@needs_ffmpeg
def test_a_video_without_sound_is_said_to_be_one(tmp_path: Path) -> None:
    words = [
        "ffmpeg",
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        "testsrc=size=32x32:duration=1",
        "-an",
        str(tmp_path / "x.mp4"),
    ]
    subprocess.run(words, check=True)
    with pytest.raises(AudioError, match=r"holds no sound: it has pictures alone") as raised:
        list(load(tmp_path / "x.mp4"))
    assert raised.value.reason == "empty"
