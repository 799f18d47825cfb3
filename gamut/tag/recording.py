"""A sound file as a stream of samples: of any length, in constant memory, read as often as asked."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

import miniaudio
import numpy as np
import soundfile
import soxr

from gamut.audio.containers import check_whole
from gamut.audio.ffmpeg import needs_ffmpeg, to_file_with_ffmpeg
from gamut.audio.mpeg import unannounced
from gamut.errors import AudioError
from gamut.numbers import RATE

SECONDS = 10  # of a block
HELD = 60 * RATE  # samples: a recording of no more is decoded once and held


class Sound(Protocol):
    """What tags and embeddings are made of: a file (`Recording`), or a waveform in memory."""

    path: Path  # or a name
    samples: int  # at 16 kHz

    @property
    def seconds(self) -> float: ...

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [n], mono at 16 kHz, from the beginning: as often as asked."""
        ...


def spans(sound: Sound, samples: int, least: int) -> Iterator[np.ndarray]:
    """int16 spans of a sound, one behind the other. The last one is shorter; where it would have fewer samples than
    `least`, too few for a patch, it is one with the span before it."""
    held = np.zeros(0, np.int16)
    for block in sound.blocks():
        whole = np.clip(np.rint(block * np.float32(32768)), -32768, 32767).astype(np.int16)
        held = np.concatenate([held, whole])
        while len(held) >= samples + least:
            yield held[:samples]
            held = held[samples:]
    yield held


class Recording:
    """A file's sound, mono at 16 kHz, in blocks. A minute is held; what is longer is decoded each time it is asked for.

    Channels are averaged and soxr resamples at its HQ setting, as in conversion to shards; 16 kHz pass as they are.
    What libsndfile does not read goes through ffmpeg, once, into a temporary file.

    >>> recording = Recording("clip.wav")      # doctest: +SKIP
    >>> recording.seconds, sum(len(block) for block in recording.blocks())      # doctest: +SKIP
    (5.0, 80000)
    """

    def __init__(self, path: str | Path, longest: float | None = None) -> None:
        """longest: seconds; no more is decoded. Raises AudioError where the file is no sound, is cut off, has no sample
        or lasts longer; ShardError where ffmpeg is needed and not there."""
        self.path = Path(path)
        self._decoded: tempfile.TemporaryDirectory[str] | None = None
        file = self.path
        try:
            if needs_ffmpeg(self.path):
                self._decoded = tempfile.TemporaryDirectory(prefix="gamut-tag-")
                file = to_file_with_ffmpeg(self.path, Path(self._decoded.name) / "sound.wav", longest and longest + 1)
            self._file = file
            self._stated = 0  # samples that an MP3's header states; 0 where it is not to be believed
            self._mpeg = self._look()
            self.samples = 0
            self._held: list[np.ndarray] = []
            for block in self.blocks():
                self.samples += len(block)
                self._held.append(block)
                if self.samples > HELD:
                    self._held.clear()
                if longest is not None and self.samples > longest * RATE:
                    raise AudioError(f"{self.path} lasts longer than {longest:g} s.", "too_long")
        except OSError as error:
            raise AudioError(f"{self.path} cannot be read: {error.strerror or error}.", "unreadable") from error
        if not self.samples:
            raise AudioError(f"{self.path} holds no sample.", "empty")

    @property
    def seconds(self) -> float:
        return self.samples / RATE

    def close(self) -> None:
        """Remove what was decoded for it."""
        if self._decoded is not None:
            self._decoded.cleanup()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [n] in [-1, 1), of about ten seconds each, from the beginning. Raises AudioError."""
        yield from self._held or resampled(self._native(), self.path)

    def _look(self) -> bool:
        """Check that the file is whole; whether it is an MP3, which libsndfile decodes anew after every block."""
        if not self._file.stat().st_size:
            raise AudioError(f"{self.path} has no bytes.", "empty")
        try:
            with soundfile.SoundFile(self._file) as file, open(self._file, "rb") as raw:
                with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as payload:
                    check_whole(payload, file.format, file.extra_info, str(self.path))  # type: ignore[arg-type]
                    mpeg = file.format == "MP3"
                    if mpeg and unannounced(payload) is None:  # type: ignore[arg-type]
                        self._stated = file.frames
                return mpeg
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{self.path} is not a sound file that can be read: {error.error_string}", "unreadable"
            ) from error

    def _native(self) -> Generator[tuple[np.ndarray, int]]:
        """(float32 [n, channels], rate) as the file has it."""
        try:
            if self._mpeg:
                about = miniaudio.mp3_get_file_info(str(self._file))
                decoded = 0
                for piece in miniaudio.mp3_stream_file(str(self._file), SECONDS * about.sample_rate):
                    values = np.asarray(piece, np.int16).reshape(-1, about.nchannels)
                    decoded += len(values)
                    yield values.astype(np.float32) / np.float32(32768), about.sample_rate
                self._require(decoded, self._stated)
                return
            with soundfile.SoundFile(self._file) as file:
                decoded = 0
                while len(block := file.read(SECONDS * file.samplerate, dtype="float32", always_2d=True)):
                    decoded += len(block)
                    yield block, file.samplerate
                self._require(decoded, file.frames)
        except (soundfile.LibsndfileError, miniaudio.DecodeError) as error:
            raise AudioError(f"{self.path} is damaged: {error}", "corrupt") from error

    def _require(self, decoded: int, stated: int) -> None:
        if decoded < stated:
            raise AudioError(f"{self.path} ends after {decoded} of its {stated} samples.", "truncated")


def resampled(native: Generator[tuple[np.ndarray, int]], path: Path) -> Iterator[np.ndarray]:
    """float32 [n], mono at 16 kHz, n >= 1, of blocks (float32 [n, channels], rate) of what `path` names. Raises
    AudioError."""
    stream: soxr.ResampleStream | None = None
    with contextlib.closing(native) as blocks:
        for block, rate in blocks:
            if not np.isfinite(block).all():
                raise AudioError(f"{path} has samples that are NaN or infinite.", "not_finite")
            mono = block.mean(axis=1, dtype=np.float32)
            if rate != RATE:
                if not 1_000 <= rate <= 10_000_000:
                    raise AudioError(f"{path}: a sample rate of {rate} Hz is not that of sound.", "format")
                stream = stream or soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
                mono = stream.resample_chunk(mono)
            if len(mono):
                yield mono
    if stream is not None and len(mono := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield mono
