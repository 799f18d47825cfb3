"""A loaded model: embeddings of sounds, and their tags."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

import numpy as np
import torch

from gamut.data.memory import packed
from gamut.embed import LEVELS, Level
from gamut.embed.sounds import listed, opened, rates
from gamut.errors import FeatureError, RecipeError
from gamut.features.encoders import AnyLength, Encoder, Final
from gamut.numbers import RATE
from gamut.tag.recording import Recording, Sound, spans
from gamut.tag.result import Tagged
from gamut.tag.spectrogram import Spectrograms
from gamut.tag.speech import Speech

BATCH = 8  # sounds, and windows, at a time


@dataclass(frozen=True)
class Window:
    """How a sound is cut for an encoder: into windows one behind the other."""

    samples: int  # of a window
    least: int = 1  # a last window of fewer is one with that before it
    filled: bool = True  # a shorter one is followed by silence up to that length; else it keeps its own


@dataclass(frozen=True)
class Embedded:
    """A sound over time, float32.

    values: frames [steps, dim], layers [layers, steps, dim], or patches [steps, bands, dim] with the lowest band first.
    times: float64 [steps], seconds from the beginning of the sound to the middle of each step.
    """

    values: np.ndarray
    times: np.ndarray


class Model:
    """What `gamut.load` returns.

    labels: names of the classes that `tag` tells apart; None where there are none. dim: of a vector. weights: which
    ones they are, in words.

    >>> model = gamut.load("runs/asit_b")      # doctest: +SKIP
    >>> model.embed(["a.wav", "b.mp3"]).shape      # doctest: +SKIP
    (2, 768)
    >>> frames = model.embed(waveform, 44100, level="frame")[0]      # doctest: +SKIP
    >>> frames.values.shape, frames.times[:2]      # doctest: +SKIP
    ((31, 768), array([0.0875, 0.2475]))
    """

    def __init__(
        self,
        encoder: Encoder,
        window: Window,
        tagger: Spectrograms | Speech | None,
        what: str,
        weights: str,
        device: torch.device,
    ) -> None:
        """what: the model, at the beginning of a sentence."""
        self.encoder, self.window, self.tagger, self.what, self.weights = encoder, window, tagger, what, weights
        self._together = 1 if device.type == "cpu" else BATCH  # windows of a forward: a CPU gains nothing from more

    @property
    def labels(self) -> tuple[str, ...] | None:
        if isinstance(self.tagger, Spectrograms):
            return self.tagger.labels
        return self.tagger.head.labels if self.tagger is not None and self.tagger.head is not None else None

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def decides(self) -> dict[str, Any]:
        """All that decides the numbers of an embedding: weights, front end and windows, as JSON holds it."""
        encoder = self.encoder
        front = {"front": dict(encoder.front), "plan": encoder.policy(1).fields(), "window": asdict(self.window)}
        return {"model": dict(encoder.model)} | front

    @overload
    def embed(
        self, sounds: Any, rate: float | Sequence[float] | None = None, level: Literal["clip"] = "clip"
    ) -> np.ndarray: ...

    @overload
    def embed(
        self, sounds: Any, rate: float | Sequence[float] | None = None, *, level: Literal["frame", "layer", "patch"]
    ) -> list[Embedded]: ...

    def embed(
        self, sounds: Any, rate: float | Sequence[float] | None = None, level: Level = "clip"
    ) -> np.ndarray | list[Embedded]:
        """Embeddings of sounds of any length, in their order.

        sounds: files by their paths, arrays of NumPy or torch (float in [-1, 1], int16 or int32), or a list of these.
        An array [samples] is one sound and [n, samples] n sounds; in a list an array may be [channels, samples], too,
        of which the mean is taken. rate: of arrays, in Hz: one for all, or one for each.

        level: `clip`, float32 [n, dim]: the model's own vector of a clip (class token, attention pooling), or else the
        mean of its frames. `frame`: after the last norm, a step at a time. `layer`: likewise, of every block's output,
        before that norm. `patch`: of a model of spectrograms, the tokens of its patches.

        A sound that is longer than the model reads goes through it in windows one behind the other; the vector of the
        clip is the mean of theirs, by length. What a sound gives does not depend on the others: on a CPU to the bit,
        since each window is a forward of its own; on a GPU within the rounding of matrices of other heights.

        Raises AudioError naming a sound that cannot be used, RecipeError for a level that the model has not.
        """
        if level not in LEVELS:
            raise RecipeError(f"There is no level {level!r}: it is one of {', '.join(LEVELS)}.")
        found: list[np.ndarray | Embedded] = []
        for some in _some(sounds, rate):
            found += self.encode(some, level)
        if level != "clip":
            return found  # type: ignore[return-value]
        return np.stack(found) if found else np.zeros((0, self.dim), np.float32)  # type: ignore[arg-type]

    def encode(self, sounds: Sequence[Sound], level: Level) -> list[np.ndarray | Embedded]:
        """Of each sound its vector, float32 [dim], or what it is over time: a few sounds, since all are held."""
        gathered = [_Gathering(one, level) for one in sounds]
        waiting: dict[int, list[tuple[_Gathering, int, np.ndarray]]] = {}
        for one in gathered:
            start = 0
            for waveform in spans(one.sound, self.window.samples, self.window.least):
                alike = waiting.setdefault(0 if self.window.filled else len(waveform), [])
                alike.append((one, start, waveform))
                start += len(waveform)
                if len(alike) == self._together:
                    self._pass(alike, level)
                    alike.clear()
        for alike in waiting.values():
            if alike:
                self._pass(alike, level)
        return [one.whole() for one in gathered]

    @torch.no_grad()
    def _pass(self, windows: list[tuple[_Gathering, int, np.ndarray]], level: Level) -> None:
        """One forward of windows that become equally many steps."""
        waveforms = [waveform for *_, waveform in windows]
        encoder = self.encoder
        if not self.window.filled and isinstance(encoder, AnyLength):
            encoder = encoder.at(len(waveforms[0]))
        blocks: list[torch.Tensor] = []

        def each(number: int, output: torch.Tensor) -> None:
            if level != "layer":
                blocks.clear()  # the last is enough
            blocks.append(output.float())

        final = encoder(packed(waveforms, encoder.policy(len(windows))), each)
        if final is None:
            step = self.window.samples / RATE / blocks[-1].shape[1]
            final = Final(blocks[-1], step / 2, step)
        if level == "patch" and final.patches is None:
            raise RecipeError(f"{self.what} has no patches: its levels are clip, frame and layer.")
        values = torch.stack(blocks, 1) if level == "layer" else final.patches if level == "patch" else final.steps
        assert values is not None
        kept = values.float().cpu().numpy()
        if not np.isfinite(kept).all():
            names = ", ".join(str(one.sound.path) for one, *_ in windows)
            raise FeatureError(
                f"{self.what} gives numbers that are not finite for {names}: load it in fp32 (precision)."
            )
        vectors = None if final.clip is None else final.clip.float().cpu().numpy()
        for row, (one, start, waveform) in enumerate(windows):
            one.add(start, len(waveform), final, kept[row], None if vectors is None else vectors[row])

    def tag(
        self,
        sounds: Any,
        rate: float | Sequence[float] | None = None,
        every: float | None = None,
        text: dict[str, Any] | None = None,
    ) -> list[Tagged]:
        """Tags of sounds (as `embed` takes them), and their text where the model writes some.

        every: seconds of a span (None: as much as the model reads whole). text: options of a Whisper's `generate`, such
        as {"language": "en"}; {}: none; None: no text. Raises RecipeError where the model has no classes.
        """
        tagger = self.tagger
        if tagger is None:
            raise RecipeError(
                f"{self.what} has no classes, so it gives no tags; `embed` gives what it hears as vectors. For tags "
                "load a fine-tuned run, or a Whisper with a head."
            )
        if isinstance(tagger, Speech):
            writes = text if tagger.head else text or {}
            tag = functools.partial(tagger.tag, every=every, text=writes)
        elif text is None:
            tag = functools.partial(tagger.tag, every=every)
        else:
            raise RecipeError(f"{self.what} writes no text: leave `text` out.")
        found: list[Tagged] = []
        for some in _some(sounds, rate):
            found += tag(some)
        return found


class _Gathering:
    """A sound, and what its windows gave so far."""

    def __init__(self, sound: Sound, level: Level) -> None:
        self.sound, self._level = sound, level
        self._sum: np.ndarray | None = None  # float64 [dim], of vectors times their weights
        self._weight = 0.0
        self._values: list[np.ndarray] = []
        self._times: list[np.ndarray] = []

    def add(self, start: int, samples: int, final: Final, values: np.ndarray, vector: np.ndarray | None) -> None:
        """Take in a window of so many samples from `start` on. Steps behind its sound, in silence, are left out."""
        steps = values.shape[1] if self._level == "layer" else len(values)
        own = min(max(math.ceil(samples / RATE / final.step - 1e-6), 1), steps)
        if self._level == "clip":
            part, weight = (values[:own].mean(0, dtype=np.float64), own) if vector is None else (vector, samples)
            part = weight * part.astype(np.float64)
            self._sum = part if self._sum is None else self._sum + part
            self._weight += weight
            return
        self._values.append(values[:, :own] if self._level == "layer" else values[:own])
        self._times.append(start / RATE + final.first + final.step * np.arange(own))

    def whole(self) -> np.ndarray | Embedded:
        """Once all windows were added."""
        if self._sum is not None:
            return (self._sum / self._weight).astype(np.float32)
        return Embedded(np.concatenate(self._values, axis=int(self._level == "layer")), np.concatenate(self._times))


def _some(sounds: Any, rate: float | Sequence[float] | None) -> Iterator[list[Sound]]:
    """The sounds in their order, a few at a time, each open until the next are asked for."""
    given = listed(sounds)
    each = list(zip(given, rates(rate, len(given))))
    for first in range(0, len(each), BATCH):
        with contextlib.ExitStack() as held:
            some = [opened(*one, first + number) for number, one in enumerate(each[first : first + BATCH])]
            for one, (was, _) in zip(some, each[first : first + BATCH]):
                if isinstance(one, Recording) and one is not was:
                    held.callback(one.close)
            yield some
