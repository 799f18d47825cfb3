"""What the sound of a shard's clips tells, added up clip by clip by whoever decodes them."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash

from gamut.audio.kinds import needs_ffmpeg
from gamut.audio.logmel import RunningStatistics, log_mel
from gamut.audio.members import read_by
from gamut.numbers import HOP, PATCH, WINDOW
from gamut.threads import one_thread

COUNTED = ("clips", "clipped", "padded")  # clipped: with samples held to full scale; padded: under 16 frames
SHORT = (PATCH - 1) * HOP + WINDOW  # samples of 16 frames
READERS = {".hdf5": "h5py", ".h5": "h5py"}  # of conversions that did not record it
UNKNOWN = "unknown"  # sample rate


class Heard:
    """Sums over clips of one shard, added in the order of the tar: the bits depend on nothing else.

    >>> heard = Heard()
    >>> heard.add(np.zeros(560, np.int16))
    >>> heard.frames.count, heard.silent, len(heard.sounds)
    (256, 1, 1)
    """

    def __init__(self) -> None:
        self.frames = RunningStatistics()  # every frame counts alike; no augmentation, no padding; float64
        self.rates = Counter[str]()  # "44100 Hz", of the files that the clips were made from -> clips
        self.sources: dict[str, Counter[str]] = {}  # "wav, 44100 Hz, by soundfile" -> COUNTED
        self.sounds = array("Q")  # xxh3_64 of each clip's samples
        self.silent = 0  # clips of which every sample is the same

    def add(self, waveform: np.ndarray) -> None:
        """Take in the sound of a clip, int16 [samples], 16 kHz."""
        self.sounds.append(xxhash.xxh3_64_intdigest(waveform.tobytes()))
        self.silent += not waveform.any() or bool((waveform == waveform[0]).all())
        with one_thread():
            self.frames.add(clip_log_mel(waveform))

    def add_described(self, about: Any) -> None:
        """Take in what the content of a KEY.json tells of the file that the clip was made from, if it does."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            rate = f"{about['provenance']['rate']:g} Hz"
            self._count(rate, _source(about["provenance"]), about["saturated"] > 0, about["samples"])

    def add_member(self, payload: bytes, codec: str, clipped: bool, samples: int) -> None:
        """Take in what a member of a third-party tar tells of itself. Raises AudioError (empty)."""
        rate, reader = read_by(payload)
        told = f"{rate} Hz" if rate else UNKNOWN
        self._count(told, f"{codec}, {told}, by {reader}", clipped, samples)

    def _count(self, rate: str, source: str, clipped: bool, samples: int) -> None:
        self.rates[rate] += 1
        counts = {"clips": 1, "clipped": int(clipped), "padded": int(samples < SHORT)}
        self.sources.setdefault(source, Counter()).update(counts)

    def dump(self) -> dict:
        """As JSON knows it, which keeps every bit of the sums."""
        sums = {"count": self.frames.count, "mean": self.frames.mean, "squares": self.frames.squares}
        return {**vars(self), "frames": sums, "sounds": self.sounds.tolist()}

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Heard:
        """The inverse of `dump`. Raises TypeError, ValueError, KeyError."""
        heard, sums = cls(), content["frames"]
        heard.frames.count, heard.frames.mean, heard.frames.squares = sums["count"], sums["mean"], sums["squares"]
        heard.rates = Counter(content["rates"])
        heard.sources = {source: Counter(counts) for source, counts in content["sources"].items()}
        heard.sounds, heard.silent = array("Q", content["sounds"]), int(content["silent"])
        return heard

    def join(self, other: Heard) -> None:
        """Take in those of another shard, but for its sounds: the shards come in the order of the index."""
        self.frames.merge(other.frames)
        self.rates.update(other.rates)
        for source, counts in other.sources.items():
            self.sources.setdefault(source, Counter()).update(counts)
        self.silent += other.silent


def clip_log_mel(waveform: np.ndarray) -> torch.Tensor:
    """Log-mel [T, 128] of a whole clip, int16 [n]: T = 1 + (n - 400) // 160, one frame for n under 400."""
    samples = torch.from_numpy(np.pad(waveform, (0, max(0, WINDOW - len(waveform)))))
    frames = 1 + (len(samples) - WINDOW) // HOP
    offset, length = torch.tensor([0, len(samples)]), torch.tensor([len(waveform)])
    return log_mel(samples, offset, length, torch.tensor([HOP]), torch.tensor([frames]), (frames,))


def _source(provenance: Mapping[str, Any]) -> str:
    """What kind of file a clip was made from, and what read it."""
    ending = os.path.splitext(provenance["file"])[1].lower()
    reader = provenance.get("reader") or READERS.get(
        ending, "ffmpeg" if needs_ffmpeg(provenance["file"]) else "soundfile"
    )
    return f"{ending.removeprefix('.') or 'no ending'}, {provenance['rate']:g} Hz, by {reader}"
