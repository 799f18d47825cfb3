"""What unpacks to more than is allowed, or leads to another file: refused by name, and nothing of it is held."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from gamut.audio import mpeg
from gamut.audio.blocks import BLOCK, blocks, waveform
from gamut.audio.decode import decode_flac, encode_flac, read_audio
from gamut.audio.ffmpeg import by_ffmpeg
from gamut.audio.longest import Longest
from gamut.audio.members import decode_member, read_member, stated_samples
from gamut.audio.segment import Segment, load
from gamut.audio.sound import sound as read_sound
from gamut.errors import AudioError
from gamut.shards import Index
from gamut.tag.recording import Recording
from tests.lacking import needs_ffmpeg
from tests.shards.layouts import clips, convert, sound

SHORT = Longest(1.0, "--longest HOURS")


def silence(seconds: float, rate: int, channels: int = 1, **kinds: str) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, channels, **kinds) as sound:
        left = round(seconds * rate)
        while left:
            sound.write(np.zeros((min(left, BLOCK), channels), np.int16))
            left -= min(left, BLOCK)
    return file.getvalue()


def without_length(flac: bytes) -> bytes:
    """The same FLAC as an encoder leaves it that could not go back to its beginning."""
    bare = bytearray(flac)
    bare[21] &= 0xF0
    bare[22:26] = bytes(4)
    return bytes(bare)


def without_header(mp3: bytes) -> bytes:
    begin = mpeg.first_frame(mp3)
    assert begin is not None
    return mp3[begin + next(mpeg.stream(mp3, begin)).size :]


def of_a_pipe(wav: bytes) -> bytes:
    at = wav.index(b"data") + 4
    return wav[:at] + b"\xff\xff\xff\xff" + wav[at + 4 :]


@contextlib.contextmanager
def held(most: float) -> Iterator[None]:
    """At no time more than `most` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


MINUTE = 30.0
BOMBS: dict[str, Callable[[], bytes]] = {
    "flac": lambda: silence(MINUTE, 44_100, format="FLAC"),
    "flac of unknown length": lambda: without_length(silence(MINUTE, 44_100, format="FLAC")),
    "wav": lambda: silence(MINUTE, 16_000, format="WAV"),
    "wav of unknown length": lambda: of_a_pipe(silence(MINUTE, 16_000, format="WAV")),
    "wav of 1,024 channels": lambda: silence(1.1, 8_000, 1024, format="WAV", subtype="PCM_U8"),
    "vorbis": lambda: silence(MINUTE, 8_000, format="OGG"),
    "opus": lambda: silence(MINUTE, 16_000, format="OGG", subtype="OPUS"),
    "mp3": lambda: silence(MINUTE, 16_000, format="MP3"),
    "mp3 of unknown length": lambda: without_header(silence(MINUTE, 16_000, format="MP3")),
    "flac at 655,350 hz of 8 channels": lambda: silence(0.9, 655_350, 8, format="FLAC"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_more_than_the_limit_is_decoded(name: str, tmp_path: Path) -> None:
    payload = BOMBS[name]()
    path = tmp_path / "bomb.wav"
    path.write_bytes(payload)
    for source in (payload, path):
        done, channels = 0, 1
        with pytest.raises(AudioError, match="raises the limit") as caught:  # noqa: PT012 (what came before is counted)
            for block, _ in blocks(source, str(path), SHORT):
                done, channels = done + len(block), block.shape[1]
        assert caught.value.reason == "too_long"
        assert "bomb.wav" in str(caught.value)
        assert done * channels <= BLOCK + SHORT.seconds * 1_000_000 if "unknown" in name else done == 0
    for read in (read_member, read_audio, lambda *given: waveform(load(path, None, SHORT), "x")):
        with pytest.raises(AudioError, match="lasts longer than 1 s"):
            read(payload, SHORT)
    with pytest.raises(AudioError, match=r"bomb\.wav.*lasts longer than 1 s"):
        Recording(path, SHORT)
    with pytest.raises(AudioError):  # training: no more than the index says that there is
        decode_member(payload, 16_000)


def test_a_bomb_is_too_long_with_the_usual_limits() -> None:
    """Seven hours of silence in 140 KB, at two thousand samples a second to keep the test short."""
    bomb = silence(7 * 3600, 2_000, format="FLAC")
    assert len(bomb) < 200_000
    for read in (read_member, read_audio, stated_samples):
        with held(1e6), pytest.raises(AudioError, match=r"longer than 4 h \(--longest HOURS raises the limit\)"):
            read(bomb)
    for read in (read_member, read_audio):
        with held(20 * 60 * 16_000), pytest.raises(AudioError, match="longer than 60 s"):
            read(without_length(bomb), Longest(60.0))


def test_memory_is_that_of_the_clip_whatever_its_rate_and_channels() -> None:
    seconds = 40
    payload = silence(seconds, 96_000, 8, format="FLAC")  # 123 MB as floats
    with held(2 * 2 * seconds * 16_000 + 8 * 4 * BLOCK):
        made = waveform(blocks(payload, "x", SHORT._replace(seconds=seconds)), "x")
    assert (len(made.samples), made.channels, made.rate) == (seconds * 16_000, 8, 96_000)


def test_a_shards_flac_without_a_length_is_read_to_that_of_the_index() -> None:
    samples = np.arange(5_000).astype(np.int16)
    np.testing.assert_array_equal(decode_flac(without_length(encode_flac(samples)), 5_000), samples)
    bomb = without_length(silence(600, 16_000, format="FLAC"))
    with held(1e6), pytest.raises(AudioError, match="instead of 5000"):
        decode_flac(bomb, 5_000)


def test_a_segment_is_all_that_is_held_of_a_recording(tmp_path: Path) -> None:
    for name in ("x.ogg", "x.flac", "x.mp3"):
        path = tmp_path / name
        path.write_bytes(silence(MINUTE, 16_000, format=path.suffix[1:].upper()))
        assert len(waveform(load(path, Segment(20.0, 20.5), SHORT), "x").samples) == 8_000
        for too_long in (Segment(1.0, 2.5), Segment(15.0)):
            with pytest.raises(AudioError, match="longer than 1 s"):
                waveform(load(path, too_long, SHORT), "x")


def test_convert_leaves_a_bomb_out_by_name_and_takes_it_once_it_may(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    sound(src / "dog" / "short.wav", 1.0)
    (src / "dog" / "long.flac").write_bytes(silence(9.0, 16_000, format="FLAC"))
    assert convert("folder", src, dst, "--longest", "0.001") == 0
    (left,) = clips(dst)
    assert left == "dog/short"
    said = (dst / "index" / "quarantine.json").read_text()
    assert '"too_long": 1' in said
    assert "long.flac: This audio lasts longer than 3.6 s (--longest HOURS raises the limit)" in said
    assert convert("folder", src, dst) == 0
    assert sorted(clips(dst)) == ["dog/long", "dog/short"]
    assert '"too_long"' not in (dst / "index" / "quarantine.json").read_text()
    assert max(Index.open(dst).samples) == 9 * 16_000
    with pytest.raises(SystemExit):
        convert("folder", src, dst, "--longest", "-1")


@needs_ffmpeg
def test_what_goes_through_ffmpeg_is_cut_at_the_limit(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(30 * 16_000), 16_000)
    words = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", "-c:a", "flac", tmp_path / "x.mkv"]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    with pytest.raises(AudioError, match=r"x\.mkv lasts longer than 1 s"):
        list(read_sound(tmp_path / "x.mkv", "x.mkv", SHORT))
    with pytest.raises(AudioError, match=r"x\.mkv lasts longer than 1 s"):
        Recording(tmp_path / "x.mkv", SHORT)
    out = by_ffmpeg(tmp_path / "x.mkv", "x.mkv", tmp_path, SHORT)
    assert out.stat().st_size < 3 * 16_000 * 4


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile secret.wav\n",
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{folder}/secret.wav\n#EXT-X-ENDLIST\n",
    "hls of ts": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{folder}/secret.ts\n#EXT-X-ENDLIST\n",
    "web": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
}


@needs_ffmpeg
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_does_not_lead_to_another_file(kind: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "secret.wav", np.full(16_000, 0.5), 16_000)
    words = ["ffmpeg", "-v", "error", "-i", tmp_path / "secret.wav", "-c:a", "mp2", tmp_path / "secret.ts"]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    path = tmp_path / "clip.mp4"
    path.write_text(PLAYLISTS[kind].format(folder=tmp_path))
    with pytest.raises(AudioError, match=r"ffmpeg cannot read .*clip\.mp4"):
        list(read_sound(path, str(path), SHORT))


@needs_ffmpeg
@pytest.mark.parametrize(
    "name", ["-i.mkv", "concat:a|b.mkv", "http:x.mkv", "pipe:0.mkv", "%03d.mkv", "a\nb.mkv", "$(x).mkv"]
)
def test_a_name_is_a_file_and_nothing_else_to_ffmpeg(name: str, tmp_path: Path, monkeypatch) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(8_000), 16_000)
    words = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", "-c:a", "flac", f"file:{tmp_path}/x.mkv"]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    (tmp_path / "x.mkv").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert sum(len(block) for block, _ in read_sound(Path(name), "x", SHORT)) == 8_000


def hdf5(tmp_path: Path, fill: Callable[[h5py.File], object]) -> Path:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        fill(file)
    return tmp_path / "x.hdf5"


def secret(tmp_path: Path) -> str:
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["a"] = np.ones(9_000, np.float32)
    return str(tmp_path / "secret.hdf5")


def _virtual(file: h5py.File, other: str) -> None:
    layout = h5py.VirtualLayout((9_000,), "f4")
    layout[:] = h5py.VirtualSource(other, "a", (9_000,))
    file.create_virtual_dataset("a", layout)


def _filtered(file: h5py.File) -> None:
    """By a filter that HDF5 does not have, and so would load as a library."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((100,))
    made.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((9_000,)), made)


def _pickled(file: h5py.File) -> None:
    file.create_dataset("a", (9_000,), h5py.vlen_dtype(np.uint8))[0] = np.frombuffer(b"cos\nsystem\n", np.uint8)


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (lambda file, other: file.__setitem__("a", h5py.ExternalLink(other, "a")), "is a link"),
        (lambda file, other: file.__setitem__("a", h5py.SoftLink("/b")), "is a link"),
        (_virtual, "in another file"),
        (
            lambda file, other: file.create_dataset("a", (9_000,), "f4", external=[("/etc/passwd", 0, 36_000)]),
            "in another file",
        ),
        (lambda file, other: _filtered(file), "filter 32015"),
        (lambda file, other: _pickled(file), r"not numbers \[samples\]"),
        (lambda file, other: file.create_group("a"), "cannot be read at a"),
        (lambda file, other: file.create_dataset("a", (9, 9), "f4"), r"not numbers \[samples\]"),
        (lambda file, other: file.create_dataset("a", (), "f4"), r"not numbers \[samples\]"),
        (lambda file, other: file.create_dataset("a", (1 << 50,), "f4", chunks=(1000,)), "longer than 1 s"),
        (lambda file, other: file.create_dataset("a", (1 << 40,), "u1", chunks=(1 << 30,), compression=9), "chunks of"),
    ],
)
def test_an_array_of_another_file_or_of_absurd_size_is_refused(
    fill: Callable[[h5py.File, str], object], sentence: str, tmp_path: Path
) -> None:
    path = hdf5(tmp_path, lambda file: fill(file, secret(tmp_path)))
    with pytest.raises(AudioError, match=sentence):
        waveform(load(path, Segment(member="a", rate=16_000), SHORT), "x")


def test_an_array_in_groups_and_packed_by_hdf5_is_read(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-999, 999, 5_000).astype(np.int16)
    path = hdf5(
        tmp_path, lambda file: file.create_dataset("a/b", data=samples, compression="gzip", shuffle=True, chunks=(512,))
    )
    made = waveform(load(path, Segment(0.1, 0.2, "a/b", 16_000), SHORT), "x")
    np.testing.assert_array_equal(made.samples, samples[1_600:3_200])
