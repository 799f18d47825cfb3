"""Sound through a pipe: the tags of a file, as they come, in constant memory."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gamut.commands import ROOT
from gamut.errors import AudioError
from gamut.models.tagger import Tagger
from gamut.models.whisper import load_whisper
from gamut.recipe import schema
from gamut.tag import Recording, load
from gamut.tag.__main__ import main
from gamut.tag.spectrogram import Spectrograms
from gamut.tag.speech import Head, Speech, _quietest
from gamut.tag.stream import Stream, interrupts
from tests.close import assert_close

from .rounds import a_run
from .whispers import DIM, LAYERS, talking_whisper


def noise(seconds: float, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * (300 + 200 * np.floor(at)) * at)[:, None] + rng.normal(0, 0.02, (len(at), channels))


def wav(sound: np.ndarray, rate: int, kind: str, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, kind, format=form)
    return file.getvalue()


def unpatched(content: bytes, size: int) -> bytes:
    """A WAV as a program leaves it that writes to a pipe and cannot go back to its header."""
    at = content.index(b"data") + 4
    return content[:4] + size.to_bytes(4, "little") + content[8:at] + size.to_bytes(4, "little") + content[at + 4 :]


@contextlib.contextmanager
def pipe(content: bytes, chunk: int = 1 << 20) -> Iterator[int]:
    """The reading end of a pipe that gets so many bytes at a time."""
    read, write = os.pipe()

    def fill() -> None:
        with contextlib.suppress(BrokenPipeError), open(write, "wb", buffering=0) as file:
            for at in range(0, len(content), chunk):
                file.write(content[at : at + chunk])

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield read
    finally:
        os.close(read)
        thread.join()


def heard(content: bytes, rate: int | None = None, channels: int | None = None, chunk: int = 1 << 20) -> np.ndarray:
    with pipe(content, chunk) as read:
        stream = Stream(read, rate, channels)
        blocks = list(stream.blocks())
    assert stream.samples == sum(map(len, blocks))
    return np.concatenate([np.zeros(0, np.float32), *blocks])


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize(
    ("rate", "channels", "kind", "form"),
    [
        (16000, 1, "PCM_16", "WAV"), (44100, 2, "PCM_24", "WAVEX"), (8000, 3, "FLOAT", "WAV"),
        (16000, 2, "DOUBLE", "WAVEX"), (48000, 1, "PCM_32", "RF64"), (8000, 1, "ULAW", "WAV"),
        (22050, 1, "PCM_U8", "WAV"), (8000, 1, "ALAW", "WAV"),
    ],
)  # fmt: skip
def test_a_wav_through_a_pipe_is_the_file(
    rate: int, channels: int, kind: str, form: str, chunk: int, tmp_path: Path
) -> None:
    content = wav(noise(0.8, rate, channels), rate, kind, form)
    (tmp_path / "x.wav").write_bytes(content)
    expected = np.concatenate(list(Recording(tmp_path / "x.wav").blocks()))
    assert_close(heard(content, chunk=chunk), expected, 0)
    if form != "RF64":
        for size in (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000):
            assert_close(heard(unpatched(content, size)), expected, 0)
        behind = content + b"LIST\x04\0\0\0abcd"  # what is behind the samples is no sound
        assert_close(heard(behind), expected, 0)


@pytest.mark.parametrize(("rate", "channels"), [(None, None), (44100, 2), (16000, None), (None, 4)])
def test_raw_samples_are_what_a_wav_of_them_is(rate: int | None, channels: int | None, tmp_path: Path) -> None:
    sound = noise(1.3, rate or 16000, channels or 1)
    soundfile.write(tmp_path / "x.wav", sound, rate or 16000, "PCM_16")
    soundfile.write(tmp_path / "x.raw", sound, rate or 16000, "PCM_16", format="RAW")
    expected = np.concatenate(list(Recording(tmp_path / "x.wav").blocks()))
    raw = (tmp_path / "x.raw").read_bytes()
    assert_close(heard(raw, rate, channels, 997), expected, 0)
    with pipe(raw + b"\1") as read:
        stream = Stream(read, rate, channels)
        assert sum(map(len, stream.blocks())) == len(expected)
        assert stream.lost == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "ends before its first sample"),
        (b"RIFF\0\0\0\0WAVEdata\x04\0\0\0abcd", "does not say what its samples are"),
        (b"RIFF\0\0\0\0WAVELIST\0\0\xff\x7f", "bytes before its samples"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\2\0\1\0\x80>\0\0\0}\0\0\1\0\4\0data\0\0\0\0abcd", "which is not read"),
        (wav(np.array([[0.0], [np.nan]]), 16000, "FLOAT"), "NaN or infinite"),
        (wav(noise(0.1, 500), 500, "PCM_16"), "500 Hz is outside 1 kHz to 10 MHz"),
        (wav(noise(1.0), 16000, "PCM_16", "FLAC"), "looks like FLAC"),
        (wav(noise(1.0), 16000, "PCM_16", "AIFF"), "looks like AIFF"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "looks like MP4"),
        (b"\x1aE\xdf\xa3" + bytes(20), "looks like Matroska or WebM"),
    ],
)  # fmt: skip
def test_what_is_no_wav_and_not_raw_is_a_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(AudioError, match=sentence):
        heard(content)
    if "looks like" in sentence:
        assert len(heard(content, rate=16000)) == len(content) // 2


@pytest.mark.parametrize(("form", "kind"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")])
def test_a_compressed_stream_is_told_how_to_get_in(form: str, kind: str) -> None:
    content = wav(noise(2.0), 16000, kind, form)
    with pytest.raises(AudioError, match=r"looks like (MP3|Ogg).*ffmpeg -v error -i - -f wav - \|"):
        heard(content)


@pytest.mark.parametrize(("seconds", "every"), [(0.05, None), (11.0, None), (4.1, 2.0), (5.0, 2.0)])
def test_tags_of_a_stream_are_the_files(
    seconds: float, every: float | None, model: Spectrograms, tmp_path: Path
) -> None:
    """Part by part, each as soon as its sound has come."""
    soundfile.write(tmp_path / "x.wav", noise(seconds), 16000, "PCM_16")
    (whole,) = model.tag([Recording(tmp_path / "x.wav")], every=every)
    with pipe((tmp_path / "x.wav").read_bytes(), 5000) as read:
        parts = list(model.listen(Stream(read), every=every))
    assert parts[-1].seconds == whole.seconds
    spans = [span for part in parts for span in part.spans]
    assert [len(part.spans) for part in parts] == [1] * len(whole.spans)
    for mine, other in zip(spans, whole.spans, strict=True):
        assert (mine.start, mine.end) == (other.start, other.end)
        assert_close(mine.probabilities, other.probabilities, 1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("runs") / "esc10")[0]


@pytest.fixture(scope="module")
def model(run: Path) -> Spectrograms:
    found = load(run)
    assert isinstance(found, Spectrograms)
    return found


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_whisper(tmp_path_factory.mktemp("models") / "whisper", longest=8)


def a_head(**known: object) -> Head:
    tagger = Tagger(schema.Head(kind="tl_tr", dim=16, layer_heads=2), LAYERS, DIM, 3, 0)
    with torch.no_grad():
        for parameter in tagger.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return Head(tagger.eval(), ("dog", "rain", "siren"), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "every"), [(0.3, None), (0.3, 0.8), (10.0, None), (10.0, 0.8), (23.7, 12.0), (23.7, None), (23.7, 0.8)]
)
def test_tags_of_a_stream_by_a_head_are_the_files(
    seconds: float, every: float | None, whisper: Path, tmp_path: Path
) -> None:
    """Spans of 0.8 s do not fill a window of 10, and one of 12 s needs two."""
    model = Speech(load_whisper(whisper), a_head(seconds=10.0))
    soundfile.write(tmp_path / "x.wav", noise(seconds), 16000, "PCM_16")
    (whole,) = model.tag([Recording(tmp_path / "x.wav")], every=every)
    with pipe((tmp_path / "x.wav").read_bytes()) as read:
        parts = list(model.listen(Stream(read), every=every))
    spans = [span for part in parts for span in part.spans]
    for mine, other in zip(spans, whole.spans, strict=True):
        assert (mine.start, mine.end) == (other.start, other.end)
        assert_close(mine.probabilities, other.probabilities, 1e-5)


def test_text_of_a_stream_comes_in_pieces_that_end_where_it_is_quiet(whisper: Path, tmp_path: Path) -> None:
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(whisper, local_files_only=True)
    model = Speech(load_whisper(whisper, decoder=True), a_head(), tokenizer)
    sound = noise(34.0)
    sound[25 * 16000 - 1600 : 25 * 16000 + 1600] = 0
    soundfile.write(tmp_path / "x.wav", sound, 16000, "PCM_16")
    with pipe((tmp_path / "x.wav").read_bytes()) as read:
        parts = list(model.listen(Stream(read), every=0.8, text={"language": "en"}))
    spans = [span for part in parts for span in part.spans]
    assert [span.start for span in spans] == [pytest.approx(0.8 * number, abs=0.01) for number in range(43)]
    assert spans[-1].end == 34.0
    pieces = [part for part in parts if part.text is not None]
    assert len(pieces) == 2
    for number, part in enumerate(pieces):
        soundfile.write(tmp_path / "y.wav", sound[400_000 * number : 400_000 * (number + 1)], 16000, "PCM_16")
        (alone,) = model.tag([Recording(tmp_path / "y.wav")], every=0.8, text={"language": "en"})
        assert part.text == alone.text
        for mine, other in zip(spans[31 * number :], alone.spans[:10] if number == 0 else []):
            assert_close(mine.probabilities, other.probabilities, 1e-5)
        assert [one.start for one in part.words] == [pytest.approx(one.start + 25 * number) for one in alone.words]


def test_the_quietest_place_is_in_the_last_third_and_the_last_of_several() -> None:
    loud = np.ones(480_000, np.float32)
    assert _quietest(loud) == 480_000 - 5 * 320
    loud[100_000:110_000] = 0
    assert _quietest(loud) == 480_000 - 5 * 320
    loud[400_000:403_200] = 0
    assert _quietest(loud) == 401_600
    loud[:] = 0
    assert _quietest(loud) == 480_000 - 5 * 320


def started(*words: object, **options: object) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "gamut.tag", *map(str, words)]
    given: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    # As at a keyboard: what a shell starts in the background is deaf to Ctrl-C, and so would its children be.
    with keyboard():
        return subprocess.Popen(line, **given | options)


@contextlib.contextmanager
def keyboard() -> Iterator[None]:
    """Within it Ctrl-C is heard, also where whoever runs the tests is deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_tags_come_while_the_stream_goes_on_and_ctrl_c_ends_it_with_what_was_heard(run: Path) -> None:
    process = started(run, "-", "--every", "1", "--format", "csv", "--top", "1")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"file,start,end,label,probability\n"
    process.stdin.write((noise(2.5) * 32767).astype("<i2").tobytes())
    process.stdin.flush()
    lines = [process.stdout.readline().split(b",") for _ in range(2)]
    assert [line[:3] for line in lines] == [[b"-", b"0.0", b"1.0"], [b"-", b"1.0", b"2.0"]]
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate()
    assert rest.startswith(b"-,2.0,2.5,")
    assert process.returncode == 130
    assert said.splitlines()[-1] == b"interrupted after 2.5 s of sound"


def test_a_ctrl_c_that_comes_right_behind_the_end_counts() -> None:
    for late, stopped in ((0.02, True), (None, False)):
        (sound, end), (stop, told) = os.pipe(), os.pipe()
        os.write(end, bytes(3200))
        os.close(end)
        stream = Stream(sound, None, None, stop)
        timer = threading.Timer(late or 0.0, os.write, (told, b"2"))
        if late:
            timer.start()
        assert sum(map(len, stream.blocks())) == 1600
        assert stream.stopped == stopped
        if late:
            timer.join()
        for descriptor in (sound, stop, told):
            os.close(descriptor)


def test_nobody_who_reads_is_no_traceback(run: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        process = started(run, "-", "--every", "1", stdout=closed)
        _, said = process.communicate((noise(3.0) * 32767).astype("<i2").tobytes())
    assert process.returncode == 141
    assert b"Traceback" not in said
    assert b"Broken" not in said


def grown(run: Path, seconds: int) -> int:
    """MB that the most memory of the command grows by between the first ten minutes of a stream and its end."""
    process = started(run, "-", "--format", "csv", "--top", "1", stdout=subprocess.DEVNULL)
    assert process.stdin is not None

    def most() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1000  # type: ignore[index]

    minute = (noise(60.0) * 32767).astype("<i2").tobytes()
    first = 0
    for number in range(seconds // 60):
        process.stdin.write(minute)
        first = most() if number == 10 else first
    process.stdin.flush()
    time.sleep(0.1)
    last = most()
    process.communicate()
    assert process.returncode == 0
    return last - first


def test_memory_stays_while_an_hour_goes_through(run: Path) -> None:
    """As floats it would be 230 MB."""
    assert grown(run, 3600) < 60


@pytest.mark.long
def test_memory_stays_over_a_day(run: Path) -> None:
    assert grown(run, 24 * 3600) < 60


@pytest.mark.parametrize(
    ("content", "words", "status", "sentence"),
    [
        (b"", [], 2, "There was no sound on standard input"),
        (b"\1", [], 2, "no sound"),
        (b"ID3\4" + bytes(100), [], 2, "looks like MP3"),
        (b"", ["x.wav"], 2, "tagged alone"),
        (b"", ["--rate", "0"], 2, "not a whole number of 1 or more"),
        (bytes(3201), ["--rate", "8000"], 0, "The last 1 bytes are no whole sample"),
        (bytes(3200), ["--rate", "100"], 2, "a sample rate of 100 Hz is outside 1 kHz to 10 MHz"),
        (bytes(8000), ["--channels", "4000"], 2, "cannot be read as 4000 channels"),
        (bytes(3200), ["--every", "77"], 2, "reads spans of"),
    ],
)
def test_a_bad_stream_is_a_sentence(
    content: bytes, words: list[str], status: int, sentence: str, run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "in").write_bytes(content)
    with open(tmp_path / "in") as file:
        monkeypatch.setattr("sys.stdin", file)
        try:
            found: object = main([str(run), "-", *words])
        except SystemExit as end:  # argparse's
            found = end.code
    assert found == status
    assert sentence in capsys.readouterr().err


def test_a_closed_input_and_options_of_a_stream_without_one(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main([str(run), "-"]) == 2
    assert "Standard input is closed" in capsys.readouterr().err
    assert main([str(run), "x.wav", "--rate", "8000"]) == 2
    assert "--rate and --channels are of raw samples" in capsys.readouterr().err


def test_the_second_ctrl_c_is_as_ever() -> None:
    with keyboard():
        with interrupts() as stop, pipe(b"") as read:
            os.kill(os.getpid(), signal.SIGINT)
            stream = Stream(read, stop=stop)
            assert list(stream.blocks()) == []
            assert stream.stopped
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
