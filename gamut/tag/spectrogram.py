"""A fine-tuned spectrogram transformer (AST, ElasticAST, ASiT): tags of whole recordings or of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from gamut.data.front import normalised
from gamut.data.memory import packed
from gamut.errors import RecipeError
from gamut.models.classifier import ClassifierNetwork
from gamut.numbers import PATCH, RATE, WINDOW
from gamut.plan import Policy, frames_within
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy
from gamut.tag.recording import SHORTEST, Sound, spans
from gamut.tag.result import Span, Tagged
from gamut.tag.stream import Stream


class Spectrograms:
    """Tags of recordings by a classifier of packed clips, each span made into tokens as its recipe makes a clip."""

    def __init__(
        self,
        network: ClassifierNetwork,
        recipe: schema.Recipe,
        mean: float,
        std: float,
        labels: Sequence[str],
        device: torch.device | str = "cpu",
        weights: str = "",
        thresholds: Sequence[float] | None = None,
    ) -> None:
        """weights: which ones the network's are, in words. thresholds: of each class's probability, where some were
        chosen."""
        self.thresholds = thresholds
        self.weights = weights
        self.network, self.recipe, self.labels = network.to(device).eval(), recipe, tuple(labels)
        self._mean, self._std, self._device = mean, std, torch.device(device)

    @property
    def seconds(self) -> float:
        """The longest span that the model reads whole."""
        return longest(self.recipe)

    def tag(
        self,
        recordings: Sequence[Sound],
        every: float | None = None,
        heard: Callable[[float], None] = lambda seconds: None,
    ) -> Iterator[Tagged]:
        """In order; as many spans as there are recordings go through the model at a time.

        every: seconds of a span (None: as much as the model reads whole, at most). heard: told how many more seconds
        are through. Raises RecipeError where a span would be longer than the model reads, AudioError where a file turns
        out to be damaged.
        """
        samples = self._samples(every)
        found: list[list[Span]] = [[] for _ in recordings]
        waiting: list[tuple[int, np.ndarray]] = []
        judged: list[tuple[int, np.ndarray]] = []  # on the device, which works on them while the next are read
        probabilities = torch.zeros(0)
        ready = 0
        for number, waveform in ((n, span) for n, one in enumerate(recordings) for span in self._cut(one, samples)):
            waiting.append((number, waveform))
            if len(waiting) < len(recordings):
                continue
            self._note(judged, probabilities, found, samples, heard)
            judged, probabilities, waiting = waiting, self._judge([one for _, one in waiting]), []
            while ready < judged[0][0]:  # those before the first that is being judged are whole
                yield self._tagged(recordings[ready], found[ready])
                ready += 1
        self._note(judged, probabilities, found, samples, heard)
        if waiting:
            self._note(waiting, self._judge([one for _, one in waiting]), found, samples, heard)
        for number in range(ready, len(recordings)):
            yield self._tagged(recordings[number], found[number])

    def listen(self, stream: Stream, every: float | None = None) -> Iterator[Tagged]:
        """A part for every span of a stream, as it comes: with the numbers that `tag` gives for a file."""
        samples = self._samples(every)
        for number, waveform in enumerate(self._cut(stream, samples)):
            if len(waveform):
                (own,) = self._judge([waveform]).cpu().numpy()
                yield Tagged(stream.path, stream.seconds, self.labels, (_span(number * samples, waveform, own),))

    def _samples(self, every: float | None) -> int:
        """Of a span."""
        policy = evaluation_policy(self.recipe)
        # Like a clip in training, a span loses what is behind its last whole patch.
        most = self.seconds + (PATCH * policy.pools[0] * policy.hops[0] - 1) / RATE
        seconds = self.seconds if every is None else every
        if not SHORTEST <= seconds <= most:
            raise RecipeError(f"This model reads spans of {SHORTEST:g} to {most:.2f} s, not of {seconds:g} s.")
        return round(seconds * RATE)

    def _cut(self, recording: Sound, samples: int) -> Iterator[np.ndarray]:
        policy = evaluation_policy(self.recipe)
        return spans(recording, samples, (PATCH * policy.pools[0] - 1) * policy.hops[0] + WINDOW)

    def _tagged(self, recording: Sound, spans: list[Span]) -> Tagged:
        return Tagged(recording.path, recording.seconds, self.labels, tuple(spans))

    def _note(
        self,
        judged: list[tuple[int, np.ndarray]],
        probabilities: torch.Tensor,
        found: list[list[Span]],
        samples: int,
        heard: Callable[[float], None],
    ) -> None:
        for (number, waveform), own in zip(judged, probabilities.cpu().numpy()):
            found[number].append(_span(len(found[number]) * samples, waveform, own))
            heard(len(waveform) / RATE)

    @torch.no_grad()
    def _judge(self, waveforms: list[np.ndarray], frames: bool = False) -> torch.Tensor:
        """Probabilities float32 [n, classes] of int16 waveforms, in one pack, on the device; or of all their `frames`,
        where the model tells them apart."""
        batch = packed(waveforms, self._policy(len(waveforms))).to(self._device)
        recipe = self.recipe
        mode, pad_with, stride = recipe.front.mode, recipe.views.pad_with, recipe.model.stride
        pixels = normalised(batch, self._mean, self._std, mode, pad_with=pad_with, stride=stride)
        where = self.network.backbone.layout(batch.frames, batch.sizes)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = self.network(pixels, where, None, frames).float()
        exclusive = self.recipe.finetune.loss == "ce"
        return logits.softmax(-1) if exclusive else logits.sigmoid()

    def _policy(self, clips: int) -> Policy:
        return replace(evaluation_policy(self.recipe), packs=1, tokens=None, clips=clips, too_long="cut")


def _span(start: int, waveform: np.ndarray, probabilities: np.ndarray) -> Span:
    return Span(round(start / RATE, 4), round((start + len(waveform)) / RATE, 4), probabilities)


def longest(recipe: schema.Recipe) -> float:
    """Seconds of the longest span that a model reads whole, as its recipe evaluates it."""
    policy = evaluation_policy(recipe)
    frames = policy.crop_frames or policy.pad_to or policy.max_frames
    limits = [frames] if frames else []
    limits += [frames_within(policy.tokens, policy)] if policy.tokens is not None else []
    spans = [((limit * policy.pools[0] - 1) * policy.hops[0] + WINDOW) / RATE for limit in limits]
    spans += [policy.max_samples / RATE] if policy.max_samples else []
    return min(spans, default=30.0)
