"""What a person has of sound, arrays or files, as what models read: mono at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from gamut.errors import AudioError, RecipeError
from gamut.numbers import RATE
from gamut.tag.recording import Recording, Sound

LOUDEST = 1.5  # of floats: what peaks a little over 1 is saturated, as in a file; beyond this it is of another scale
CHANNELS = 32  # at most


class Waveform:
    """A sound in memory: channels are averaged and soxr resamples, as those of a file are."""

    def __init__(self, array: Any, rate: float, name: str) -> None:
        """array: NumPy or torch, [samples], [channels, samples] or [samples, channels]; floats in [-1, 1], or integers
        of 8 (unsigned), 16 or 32 bits. rate: Hz. Raises AudioError where it is none of these, empty or not finite."""
        self.path = Path(name)
        if not 1_000 <= rate <= 10_000_000:
            raise AudioError(f"{name}: a sample rate of {rate:g} Hz is not that of sound.", "format")
        channels = _channels(_numbers(array), name)
        mono = channels.mean(axis=0, dtype=np.float32)
        self._mono = mono if rate == RATE else soxr.resample(mono, rate, RATE, quality="HQ")
        self.samples = len(self._mono)
        if not self.samples:
            raise AudioError(f"{name} holds no sample.", "empty")

    @property
    def seconds(self) -> float:
        return self.samples / RATE

    def blocks(self) -> Iterator[np.ndarray]:
        yield self._mono


def listed(sounds: Any) -> list[Any]:
    """One sound or several, as a list: a path or an array [samples] is one; an array [n, samples] or [n, channels,
    samples] is n of them."""
    if isinstance(sounds, (str, Path, Recording)) or not hasattr(sounds, "__iter__"):
        return [sounds]
    if not hasattr(sounds, "ndim"):
        found = list(sounds)
        if found and isinstance(found[0], (int, float, np.number)):
            raise RecipeError("A list is one of sounds, not of samples: make it an array of NumPy first.")
        return found
    if sounds.ndim == 2 and sounds.shape[1] <= CHANNELS < sounds.shape[0]:
        raise RecipeError(
            f"An array {list(sounds.shape)} is so many sounds of so many samples. If it is one sound of "
            f"{sounds.shape[1]} channels, put it into a list: [array]."
        )
    return [sounds] if sounds.ndim < 2 else list(sounds)


def opened(sound: Any, rate: float | None, number: int) -> Sound:
    """A file or an array as a sound; a `Recording` as it is. rate: of an array, in Hz. number: its place in the list,
    for messages. Raises AudioError, ShardError (a file that needs ffmpeg) or RecipeError."""
    if isinstance(sound, Recording):
        return sound
    if isinstance(sound, (str, Path)):
        return Recording(Path(sound).expanduser())
    if not hasattr(sound, "ndim") or not hasattr(sound, "dtype"):
        raise RecipeError(
            f"Sound {number} is of type {type(sound).__name__}: give an array of NumPy or torch, or a file's path."
        )
    if rate is None:
        raise RecipeError("Of arrays the sample rate must be given, in Hz: embed(waveforms, 16000).")
    return Waveform(sound, rate, f"sound {number}")


def rates(rate: float | Sequence[float] | None, count: int) -> list[float | None]:
    """One for each sound. Raises RecipeError where one is no number, or there are more or fewer."""
    each: list[Any] = list(rate) if isinstance(rate, Iterable) and not isinstance(rate, str) else [rate] * count
    for one in each:
        if one is not None and not hasattr(one, "__float__"):
            raise RecipeError(f"A sample rate is a number, in Hz, such as 16000, not {one!r}.")
    if len(each) != count:
        raise RecipeError(f"There are {count} sounds and {len(each)} rates: give one for all, or one for each.")
    return each


def _numbers(array: Any) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.is_floating_point() else array).numpy()
    return np.asarray(array)


def _channels(array: np.ndarray, name: str) -> np.ndarray:
    """float32 [channels, samples] in [-1, 1]."""
    if array.ndim not in (1, 2):
        raise AudioError(
            f"{name} has the shape {list(array.shape)}: a sound is [samples] or [channels, samples].", "format"
        )
    if not array.size:
        raise AudioError(f"{name} holds no sample.", "empty")
    channels = array[None] if array.ndim == 1 else array.T if array.shape[0] > array.shape[1] else array
    if len(channels) > CHANNELS:
        raise AudioError(f"{name} has the shape {list(array.shape)}: no sound has {len(channels)} channels.", "format")
    if array.dtype in (np.int16, np.int32):
        return (channels / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype == np.uint8:
        return (channels.astype(np.float32) - 128) / 128
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{name} is of {array.dtype}: give floats in [-1, 1], int16 or int32.", "format")
    if not np.isfinite(channels).all():
        raise AudioError(f"{name} has samples that are NaN or infinite.", "not_finite")
    if (loudest := float(np.abs(channels).max())) > LOUDEST:
        raise AudioError(
            f"{name} has samples of up to {loudest:.4g}, and floats are in [-1, 1]: divide them by their full scale, "
            "or give int16.",
            "format",
        )
    return channels.astype(np.float32)
