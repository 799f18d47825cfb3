"""A sound file as a stream of samples: of any length, in constant memory, read as often as asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from gamut.audio.blocks import Blocks, Way, blocks, resampled
from gamut.audio.levels import Beyond, require_level
from gamut.audio.longest import RECORDING, Longest
from gamut.audio.sound import readable
from gamut.errors import AudioError
from gamut.numbers import RATE

SHORTEST = 0.1  # seconds of a span
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

    def __init__(self, path: str | Path, longest: Longest = RECORDING) -> None:
        """longest: no more is decoded. Raises AudioError where the file is no sound, is cut off, has no sample, lasts
        longer or is far beyond full scale; ShardError where ffmpeg is needed and not there."""
        self.path = Path(path)
        self.way = Way()  # how it is read
        self._longest = longest
        self._decoded: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._file = readable(self.path, self._folder, longest, self.way)
            self.samples = saturated = 0
            self._held: list[np.ndarray] = []
            for block in self.blocks():
                self.samples += len(block)
                saturated += int(np.count_nonzero(np.abs(block) > 1))
                self._held.append(block)
                if self.samples > HELD:
                    self._held.clear()
            require_level(saturated, self.samples, self._native, self.path)
        except Beyond as error:
            raise AudioError(f"{self.path}: {error}", error.reason) from error
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
        """float32 [n] in [-1, 1), of some seconds each, from the beginning. Raises AudioError."""
        yield from self._held or resampled(self._native(), str(self.path))

    def _native(self) -> Blocks:
        return blocks(self._file, str(self.path), self._longest, self.way)

    def _folder(self) -> Path:
        self._decoded = tempfile.TemporaryDirectory(prefix="gamut-tag-")
        return Path(self._decoded.name)
