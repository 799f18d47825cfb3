"""A sound file read forward, block by block and no further than a limit: what is held does not grow with what a header
states, or with what a small file unpacks to.

Blocks are float32 [n, channels] in [-1, 1], n >= 1, each with the file's rate in Hz. They join to the samples that
reading the file at once would give, bit by bit, and so does what is resampled from them.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import mmap
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import miniaudio
import numpy as np
import soundfile
import soxr

from gamut.audio.containers import check_whole, samples_in, tagged, unpatched
from gamut.audio.longest import Longest
from gamut.audio.mpeg import Part, unannounced
from gamut.errors import AudioError
from gamut.numbers import RATE

BLOCK = 1 << 18  # samples over all channels that are decoded at a time: what a core's own cache holds
UNKNOWN = 1 << 62  # frames: libsndfile states 2^63 - 1 where the file does not say
LOST_MPEG_FRAMES = 10
UNPATCHED = "without a length in their header, read to the end of the file"
BY_FFMPEG = "read by ffmpeg"
SOUNDFILE, MINIAUDIO, FFMPEG = "soundfile", "miniaudio", "ffmpeg"  # readers

Blocks = Generator[tuple[np.ndarray, int]]


class _Forward(soundfile.SoundFile):
    """soundfile seeks after each read, and what a compressed file decodes to depends on where it was sought."""

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """A corrupt header can make libsndfile seek to before the first byte; that leaves the position as it is."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _Mended(io.RawIOBase):
    """A mapped file from byte `start` on, a few of whose bytes are others."""

    def __init__(self, file: BinaryIO, start: int, place: int, content: bytes) -> None:
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._map[place : place + len(content)] = content
        self._start, self._at = start, 0

    def readinto(self, into: Any) -> int:
        first = self._start + self._at
        part = self._map[first : first + len(into)]
        into[: len(part)] = part
        self._at += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, len(self._map) - self._start)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._map.close()
        super().close()


@dataclass
class Way:
    """How a sound was read."""

    reader: str = SOUNDFILE  # what decoded it
    unpatched: bool = False  # its header states no length, and it was read to the end of the file

    @property
    def notes(self) -> tuple[str, ...]:
        """What is said of it, and counted."""
        return (UNPATCHED,) * self.unpatched + (BY_FFMPEG,) * (self.reader == FFMPEG)


class UnreadableError(AudioError):
    """What libsndfile does not open; ffmpeg may."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "unreadable")


@contextlib.contextmanager
def opened(source: Path | bytes, name: str, way: Way | None = None) -> Iterator[tuple[soundfile.SoundFile, Any]]:
    """A file or its bytes, to be read forward, and the bytes, without holding those of a file; `way` is filled in.

    Raises AudioError (empty), UnreadableError, OSError.
    """
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        raise AudioError(f"{name} has no bytes.", "empty")
    with contextlib.ExitStack() as held:
        payload: Any = source
        if not isinstance(source, bytes):
            raw = held.enter_context(open(source, "rb"))
            payload = held.enter_context(mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            given: Any = _Bytes(source) if isinstance(source, bytes) else source
            start, patch = tagged(payload), unpatched(payload)
            place, content = patch or (0, b"")
            if start or patch:
                if isinstance(source, bytes):
                    given = _Bytes(source[start:place] + content + source[max(start, place + len(content)) :])
                else:
                    given = held.enter_context(_Mended(raw, start, place, content))
            if way and patch:
                way.unpatched = True
            file = held.enter_context(_Forward(given))
        except (soundfile.LibsndfileError, UnicodeDecodeError, OverflowError) as error:
            said = str(getattr(error, "error_string", error)).rstrip(". ")
            if "does not exist" in said:  # which it says of what is there and no sound at all
                said = "its bytes are of no format that it knows"
            raise UnreadableError(f"{name} is not a sound file that libsndfile reads: {said}.") from error
        yield file, payload


def frames_of(file: soundfile.SoundFile) -> int | None:
    """Samples a channel that the file states; None where it does not say."""
    return file.frames if 0 <= file.frames < UNKNOWN else None


def blocks(source: Path | bytes, name: str, longest: Longest, way: Way | None = None) -> Blocks:
    """A whole file of any format that libsndfile reads; `way` is filled in.

    libsndfile reads truncated WAV, Ogg and MP3 short without an error; here they raise. Raises AudioError (see
    `gamut.audio.decode`), UnreadableError before the first block, OSError where the file cannot be read.
    """
    with opened(source, name, way) as (file, payload):
        check_whole(payload, file.format, file.extra_info, name)
        if file.format != "MP3" and "MPEG" in file.subtype and (samples := samples_in(payload)):
            # In a WAV an MP3 has a length that libsndfile estimates: it is read as it would be without one.
            yield from blocks(bytes(payload[samples.begin :][: samples.stated]), name, longest, way)
            return
        stated = frames_of(file)
        if file.format == "MP3" and (part := unannounced(payload)):
            if way:
                way.reader = MINIAUDIO
            yield from _mpeg(payload, part, file.samplerate, file.channels, name, longest)
            return
        longest.check(stated or 0, file.samplerate, file.channels, name)
        yield from read(file, stated, name, longest)


def read(file: soundfile.SoundFile, stated: int | None, name: str, longest: Longest) -> Blocks:
    """The next so many samples a channel of an opened file, or all (None)."""
    size, done = max(1, BLOCK // file.channels), 0
    while stated is None or done < stated:
        try:
            block = file.read(size if stated is None else min(size, stated - done), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{name} is damaged: {error.error_string}", "corrupt") from error
        if not len(block):
            break
        done += len(block)
        longest.check(done, file.samplerate, file.channels, name)
        yield block, file.samplerate
    if stated is not None and done < stated:
        raise AudioError(f"{name} ends after {done} of its {stated} samples.", "truncated")


def _mpeg(payload: Any, part: Part, rate: int, channels: int, name: str, longest: Longest) -> Blocks:
    """An MP3 whose length libsndfile would only guess, by miniaudio."""
    longest.check(part.frames * part.samples, rate, channels, name)
    done = 0
    with memoryview(payload) as view, miniaudio.ffi.from_buffer(view[part.begin : part.end]) as data:
        try:
            decoded = miniaudio.stream_memory(
                data, miniaudio.SampleFormat.FLOAT32, channels, rate, max(1, BLOCK // channels)
            )
            for piece in decoded:
                block = np.array(piece, np.float32).reshape(-1, channels)
                done += len(block)
                yield block, rate
        except miniaudio.DecodeError as error:
            raise AudioError(f"{name} is damaged: its MPEG frames do not decode.", "corrupt") from error
    # A stream cut out of a longer one begins with frames that need bytes from before it, and so give nothing.
    if done < max(1, part.frames - LOST_MPEG_FRAMES) * part.samples:
        raise AudioError(
            f"{name} decodes to {done} samples, but has {part.frames} frames of {part.samples}.", "corrupt"
        )


def joined(sound: Blocks, name: str) -> tuple[np.ndarray, int]:
    """float32 [channels, n], n >= 1, and the rate in Hz. Raises AudioError (not_finite, empty)."""
    parts = [(_finite(block, name), rate) for block, rate in sound]
    if not parts:
        raise AudioError(f"{name} holds no sample.", "empty")
    return np.ascontiguousarray(np.concatenate([block for block, _ in parts]).T), parts[0][1]


def resampled(native: Blocks, name: str) -> Iterator[np.ndarray]:
    """float32 [n], mono at 16 kHz, n >= 1: channels are averaged, and soxr resamples at its HQ setting (audio at 16 kHz
    is left as it is). Raises AudioError (not_finite, format)."""
    stream: soxr.ResampleStream | None = None
    with contextlib.closing(native) as read:
        for block, rate in read:
            if not 1_000 <= rate <= 10_000_000:
                raise AudioError(f"{name}: a sample rate of {rate} Hz is outside 1 kHz to 10 MHz.", "format")
            mono = _mono(block)  # what is NaN or infinite in a channel is so in the mean
            if rate != RATE:
                stream = stream or soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
                mono = stream.resample_chunk(_finite(mono, name))
            if len(mono):
                yield _finite(mono, name)  # sums of samples that no recording has can be without bound
    if stream is not None and len(mono := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield _finite(mono, name)


def _mono(block: np.ndarray) -> np.ndarray:
    """float32 [n]: the mean of [n, channels], in the channels' order."""
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):
        total = block[:, 0] + block[:, 1]
        for channel in range(2, block.shape[1]):
            total += block[:, channel]
        total /= block.shape[1]
    return total


def _finite(block: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(block).all():
        raise AudioError(f"{name} has samples that are NaN or infinite.", "not_finite")
    return block


class Waveform(NamedTuple):
    """A clip as shards hold it, and what it was made of."""

    samples: np.ndarray  # int16 [m], 16 kHz, m >= 1
    saturated: int  # samples held to the int16 range
    rate: int  # Hz, of the source
    channels: int  # of the source
    frames: int  # samples a channel of the source


def waveform(native: Blocks, name: str) -> Waveform:
    """int16 at 16 kHz: what `resampled` gives, scaled by 32,768, rounded half to even, and held to [-32,768, 32,767].

    Raises AudioError as `resampled`, and `empty` where no sample is left.
    """
    rate = channels = frames = saturated = 0
    parts = []

    def counted() -> Blocks:
        nonlocal rate, channels, frames
        with contextlib.closing(native) as read:
            for block, rate in read:
                frames, channels = frames + len(block), block.shape[1]
                yield block, rate

    for mono in resampled(counted(), name):
        scaled = np.clip(mono, -2.0, 2.0)
        scaled *= np.float32(32768)
        np.rint(scaled, out=scaled)
        held = np.clip(scaled, -32768, 32767)
        saturated += int(np.count_nonzero(held != scaled))
        parts.append(held.astype(np.int16))
    if not frames:
        raise AudioError(f"{name} holds no sample.", "empty")
    if not parts:
        raise AudioError(f"{name}: {frames} samples at {rate} Hz are less than one sample at {RATE} Hz.", "empty")
    return Waveform(np.concatenate(parts), saturated, rate, channels, frames)


def of_array(audio: np.ndarray, rate: int) -> Blocks:
    """float32 [channels, n] as blocks."""
    size = max(1, BLOCK // max(1, len(audio)))
    for first in itertools.count(0, size):
        if first >= audio.shape[1]:
            return
        yield audio[:, first : first + size].T, rate
