"""Whisper's log-mel of a recording of any length, a window at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gamut.audio.whisper_mel import FFT, FLOOR, filled_log_mel, mel_filters, whisper_log_mel
from gamut.numbers import HOP, RATE
from gamut.tag.recording import Sound

HALF = FFT // 2  # samples of a frame before its centre
A_BLOCK = 3000  # frames


def short(waveforms: list[np.ndarray], mels: int, seconds: float, pad_with: str = "silence") -> torch.Tensor:
    """float32 [B, mels, frames] of waveforms of up to `seconds`, each followed by silence up to there, or by a log-mel
    of 0.0 (`zero`)."""
    padded = torch.zeros(len(waveforms), round(seconds * RATE))
    for row, waveform in zip(padded, waveforms):
        row[: len(waveform)] = torch.from_numpy(waveform)
    if pad_with == "zero":
        return filled_log_mel(padded, [len(waveform) for waveform in waveforms], mels)
    return whisper_log_mel(padded, mels)


class LongMel:
    """The log-mel [1, mels, frames] of a whole recording, as transformers' feature extractor gives it without cutting
    and padding, but computed as it is read.

    It is what `generate` of transformers' Whisper takes as a long input, as far as it looks at one: a shape, a device,
    and slices of frames, whose beginnings never go back. The floor is eight decades below the loudest bin of the whole
    recording, for which the file is read once more.
    """

    def __init__(self, recording: Sound, mels: int, like: torch.Tensor | None = None) -> None:
        """like: a tensor whose type and device the slices have (None: float32 on the CPU)."""
        self._recording, self._filters = recording, mel_filters(mels)
        self.shape = torch.Size([1, mels, recording.samples // HOP])
        like = torch.zeros(0) if like is None else like
        self.device, self.dtype = like.device, like.dtype
        self._begin()
        frames = self.shape[2]
        blocks = (self._log(first, min(first + A_BLOCK, frames)) for first in range(0, frames, A_BLOCK))
        self._loudest = max(float(block.max()) for block in blocks)
        self._begin()

    def __getitem__(self, key: tuple[Any, Any, slice]) -> torch.Tensor:
        """[1, mels, n]: `mel[:, :, first:last]`; what is behind the end is left out."""
        _, _, frames = key
        first, last = int(frames.start or 0), min(int(frames.stop), self.shape[2])
        log = torch.clamp(self._log(first, last), min=self._loudest - FLOOR)
        return ((log + 4.0) / 4.0)[None].to(self.device, self.dtype)

    def _begin(self) -> None:
        self._blocks: Iterator[np.ndarray] = self._recording.blocks()
        self._held = np.zeros(0, np.float32)
        self._first = 0  # sample that `_held` begins with

    def _log(self, first: int, last: int) -> torch.Tensor:
        """float32 [mels, last - first], decades."""
        # Frame f is centred on sample 160 f; around the ends of the recording its samples are mirrored.
        begin, end = first * HOP - HALF, (last - 1) * HOP + HALF
        samples = self._samples(max(begin, 0), min(end, self._recording.samples))
        if begin < 0:
            samples = np.concatenate([samples[1 : 1 - begin][::-1], samples])
        if (over := end - self._recording.samples) > 0:
            samples = np.concatenate([samples, samples[-1 - over : -1][::-1]])
        window = torch.hann_window(FFT)
        spectrum = torch.stft(
            torch.from_numpy(np.ascontiguousarray(samples)), FFT, HOP, window=window, center=False, return_complex=True
        )
        return torch.clamp(self._filters @ spectrum.abs().square(), min=1e-10).log10()

    def _samples(self, begin: int, end: int) -> np.ndarray:
        pieces = [self._held[begin - self._first :]]
        reached = self._first + len(self._held)
        while reached < end:
            pieces.append(next(self._blocks))
            reached += len(pieces[-1])
        self._held, self._first = np.concatenate(pieces), begin
        return self._held[: end - begin]
