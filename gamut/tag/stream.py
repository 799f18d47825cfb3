"""Sound as it comes through a pipe: read once, of any length, in constant memory."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import soundfile

from gamut.audio.blocks import resampled
from gamut.audio.mpeg import frame_at
from gamut.errors import AudioError
from gamut.numbers import RATE

UNKNOWN = 0x7FFF0000  # a WAV's size from here on, or 0: written by a program that could not know it and never went back
A_READ = 1 << 16  # bytes
TOGETHER = 0.1  # seconds between the end of a stream and the Ctrl-C that was its reason
HEADER = 1 << 20  # bytes: no chunk before the samples is larger

# (format tag, bits a sample) of a WAV -> libsndfile's name of its samples
SAMPLES = {
    (1, 8): "PCM_U8", (1, 16): "PCM_16", (1, 24): "PCM_24", (1, 32): "PCM_32", (3, 32): "FLOAT", (3, 64): "DOUBLE",
    (6, 8): "ALAW", (7, 8): "ULAW",
}  # fmt: skip
EXTENSIBLE = 0xFFFE  # the tag is then the first two bytes of the GUID behind
OTHERS = {
    b"ID3": "MP3", b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF", b".snd": "AU", b"caff": "CAF", b"riff": "Wave64",
    b"RIFX": "big-endian WAV", b"\x1aE\xdf\xa3": "Matroska or WebM", b"\0\0\0": "MP4",
}  # fmt: skip


class Stream:
    """Sound from a descriptor, mono at 16 kHz, in blocks as they come: raw 16-bit little-endian samples, or a WAV
    whose stated size need not be true.

    `samples` and `seconds` are of what was given away so far, `lost` the bytes behind the last whole sample.

    >>> for block in Stream(0).blocks():      # doctest: +SKIP
    ...     print(len(block))
    """

    def __init__(self, descriptor: int, rate: int | None = None, channels: int | None = None, stop: int = -1) -> None:
        """rate, channels: of raw samples (None for both: it may be a WAV; else 16,000 and 1). stop: a descriptor; once
        it can be read the stream is at its end, and was `stopped`."""
        self.path = Path("-")
        self.samples = self.lost = 0
        self.stopped = False
        self._descriptor, self._stop = descriptor, stop
        self._rate, self._channels = rate, channels
        self._ahead = b""  # read, and not yet taken

    @property
    def seconds(self) -> float:
        return self.samples / RATE

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [n] in [-1, 1), once. Raises AudioError where it is neither of both forms, or not finite."""
        for block in resampled(self._native(), "Standard input"):
            self.samples += len(block)
            yield block

    def _native(self) -> Generator[tuple[np.ndarray, int]]:
        raw = self._rate is not None or self._channels is not None
        rate, channels, kind, left = self._rate or RATE, self._channels or 1, "PCM_16", None
        head = b"" if raw else self._peek(12)
        if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
            rate, channels, kind, left = self._header()
        elif (other := _other(head)) is not None:
            raise AudioError(
                f"Standard input looks like {other}, and it is read as raw 16-bit samples or as WAV: put `ffmpeg "
                "-v error -i - -f wav - |` before this command. (Raw it is taken to be wherever --rate is given.)",
                "format",
            )
        width = channels * {"PCM_U8": 1, "ALAW": 1, "ULAW": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}.get(kind, 4)
        rest = b""
        while left != 0 and (payload := self._some(left)):
            left = None if left is None else left - len(payload)
            rest += payload
            whole = len(rest) // width * width
            if whole:
                yield _decoded(rest[:whole], rate, channels, kind), rate
            rest = rest[whole:]
        self.lost = len(rest)

    def _header(self) -> tuple[int, int, str, int | None]:
        """(rate, channels, libsndfile's name of the samples, bytes of them or None) of a WAV, up to its samples."""
        self._exactly(12)
        form: tuple[int, int, str] | None = None
        while True:
            name, size = (chunk := self._exactly(8))[:4], int.from_bytes(chunk[4:], "little")
            if name == b"data":
                if form is None:
                    raise AudioError("The WAV on standard input does not say what its samples are.", "corrupt")
                return *form, size if 0 < size < UNKNOWN else None
            content = self._exactly(size + size % 2)
            if name == b"fmt ":
                form = _format(content)

    def _exactly(self, count: int) -> bytes:
        """The next so many bytes of a header."""
        if count > HEADER:
            raise AudioError(f"The WAV on standard input has {count} bytes before its samples.", "corrupt")
        if len(self._peek(count)) < count:
            raise AudioError("The WAV on standard input ends before its first sample.", "truncated")
        return self._some(count)

    def _peek(self, count: int) -> bytes:
        while len(self._ahead) < count and (more := self._read()):
            self._ahead += more
        return self._ahead[:count]

    def _some(self, most: int | None) -> bytes:
        """What is there, or what comes next; b"" at the end."""
        payload = self._ahead or self._read()
        most = len(payload) if most is None else most
        self._ahead = payload[most:]
        return payload[:most]

    def _read(self) -> bytes:
        watched = [self._descriptor] + ([self._stop] if self._stop >= 0 else [])
        if self.stopped or self._stop in select.select(watched, [], [])[0]:
            self.stopped = True
            return b""
        try:
            payload = os.read(self._descriptor, A_READ)
        except OSError as error:
            raise AudioError(f"Standard input cannot be read: {error.strerror}.", "unreadable") from error
        if not payload and self._stop >= 0:  # of a Ctrl-C that ends a whole pipeline its end may come first
            self.stopped = bool(select.select([self._stop], [], [], TOGETHER)[0])
        return payload


@contextlib.contextmanager
def interrupts() -> Iterator[int]:
    """A descriptor that can be read from the first Ctrl-C on, which does nothing else; the next one is as ever.

    To be used in the main thread. Where Ctrl-C is ignored, as in a script's background, it stays so.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.getsignal(signal.SIGINT)
    former = signal.set_wakeup_fd(write)  # written to at once: no signal is missed just before one waits

    def first(number: int, frame: object) -> None:
        signal.signal(number, before)

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, first)
    try:
        yield read
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(former)
        os.close(read)
        os.close(write)


def _other(head: bytes) -> str | None:
    """Which form of sound the first bytes are those of, other than the two that are read; None: of none."""
    for magic, name in OTHERS.items():
        if head.startswith(magic) and (name != "MP4" or head[4:8] == b"ftyp"):
            return name
    frame = frame_at(head, 0)
    return "MP3" if frame is not None and frame.size else None


def _format(content: bytes) -> tuple[int, int, str]:
    """(rate, channels, libsndfile's name of the samples) of a WAV's chunk `fmt `."""
    tag, channels, rate, bits = (int.from_bytes(content[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8), (14, 16)))
    if tag == EXTENSIBLE:
        tag = int.from_bytes(content[24:26], "little")
    kind = SAMPLES.get((tag, bits))
    if kind is None or not channels:
        raise AudioError(
            f"The WAV on standard input has {channels} channels of format {tag} with {bits} bits, which is not read.",
            "format",
        )
    return rate, channels, kind


def _decoded(payload: bytes, rate: int, channels: int, kind: str) -> np.ndarray:
    """float32 [n, channels], as libsndfile reads these samples from a file."""
    try:
        return soundfile.read(
            io.BytesIO(payload), dtype="float32", always_2d=True, samplerate=rate, channels=channels, format="RAW",
            subtype=kind, endian="LITTLE",
        )[0]  # fmt: skip
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise AudioError(
            f"Standard input cannot be read as {channels} channels at {rate} Hz: {error}", "format"
        ) from None
