"""Whisper with a head: tags of times, and text from the same pass (Gong et al. 2023, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gamut.models.tagger import Tagger
from gamut.models.whisper import Whisper
from gamut.numbers import RATE
from gamut.tag.listen import Listening
from gamut.tag.mels import LongMel, short
from gamut.tag.recording import SHORTEST, Sound
from gamut.tag.result import Span, Tagged, Words
from gamut.tag.stream import Stream
from gamut.tag.units import STEP, UNIT, Units, units_of


@dataclass(frozen=True)
class Head:
    """A head on a Whisper's features and what its classes are."""

    tagger: Tagger
    labels: tuple[str, ...]
    exclusive: bool = False  # softmax instead of a sigmoid a class
    seconds: float = 30.0  # of the windows that it was trained on
    unit: int = UNIT  # steps that its features are means of
    blocks: tuple[int, ...] = ()  # whose outputs it reads; empty: all
    pad_with: str = "silence"  # what filled its windows up, as `extract.pad_with`
    thresholds: tuple[float, ...] | None = None  # of each class's probability, where some were chosen

    def of(self, blocks: list[torch.Tensor]) -> list[torch.Tensor]:
        """Those of the encoder's outputs that it reads."""
        return [blocks[number] for number in self.blocks] if self.blocks else blocks

    @torch.no_grad()
    def __call__(self, features: torch.Tensor) -> np.ndarray:
        """Probabilities float32 [n, classes] of features [n, layers, units, dim]."""
        logits = self.tagger(features.to(next(self.tagger.parameters()).device)).float()
        return (logits.softmax(-1) if self.exclusive else logits.sigmoid()).cpu().numpy()


class Speech:
    """Tags, text or both of recordings.

    Text is transformers' own: `generate` runs as it does without us, on windows of 30 s that begin where it says, and
    its timestamps are exact to 20 ms. Tags come from the outputs of the encoder's blocks in those very passes; without
    text from windows of the head's own length, one behind the other.

    >>> speech = Speech(load_whisper("models/whisper-tiny", decoder=True), head, tokenizer)      # doctest: +SKIP
    >>> for tagged in speech.tag([Recording("a.wav")], every=2.0, text={"language": "en"}):      # doctest: +SKIP
    ...     print(tagged.text, tagged.spans[0].top(3))
    """

    def __init__(self, whisper: Whisper, head: Head | None = None, tokenizer: Any = None, weights: str = "") -> None:
        """weights: which ones the head's are, in words."""
        self.whisper, self.head, self.tokenizer, self.weights = whisper, head, tokenizer, weights

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the head's classes; empty where there is no head."""
        return self.head.labels if self.head else ()

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Of the head's classes, where some were chosen."""
        return self.head.thresholds if self.head else None

    def tag(
        self,
        recordings: Sequence[Sound],
        every: float | None = None,
        text: dict[str, Any] | None = None,
        heard: Callable[[float], None] = lambda seconds: None,
    ) -> Iterator[Tagged]:
        """In order; a batch is as many recordings as are given.

        every: seconds of a span, a multiple of the head's unit of 0.4 (None: a window of the head's, in whole units;
        then silence behind the end counts, as it does where the features of short clips are extracted). text: options
        of transformers' `generate`, such as language and task; None: no text, and no decoder is run. heard: told how
        many more seconds are encoded. Raises RecipeError for another `every` and a language that the Whisper does not
        know, AudioError where a file turns out to be damaged.
        """
        window, units, whole = self._cut(every, text)
        gathered = [_Gathering(one, units, self.head, heard, whole) for one in recordings]
        for one in gathered:
            one.ends()
        texts = self._encode(gathered, window) if text is None else self._write(gathered, text)
        for one, (words, said) in zip(gathered, texts):
            yield Tagged(one.recording.path, one.recording.seconds, self.labels, tuple(one.spans()), said, words)

    def listen(
        self, stream: Stream, every: float | None = None, text: dict[str, Any] | None = None
    ) -> Iterator[Tagged]:
        """Parts of a stream, as it comes: the tags of each window with the numbers that `tag` gives for a file.

        With text a part is up to 30 s that end where it is quietest, since `generate` wants a long recording whole; its
        tags are of that pass.
        """
        window, units, whole = self._cut(every, text)
        gathering = _Gathering(stream, units, self.head, lambda seconds: None, whole)
        longest = self.whisper.longest
        samples = round(window * RATE) // STEP * STEP
        first = 0  # step
        for waveform in _windows(stream, samples) if text is None else _pieces(stream, longest):
            words: tuple[Words, ...] = ()
            said = None
            if text is None:
                if len(waveform) < samples:  # the last
                    gathering.ends()
                self._pass([(gathering, first, waveform)], window)
            else:
                own = _Piece(gathering, first, -(-len(waveform) // STEP))
                mel = short([waveform], self.whisper.mels, longest).to(self._like)
                ((words, said),) = self._generate([own], mel, text)
                words = tuple(one.later(first * STEP / RATE) for one in words)
            first += len(waveform) // STEP
            spans = tuple(gathering.spans())
            if spans or words:
                yield Tagged(stream.path, stream.seconds, self.labels, spans, said, words)
        gathering.ends()
        gathering.finish()
        if spans := tuple(gathering.spans()):
            yield Tagged(stream.path, stream.seconds, self.labels, spans)

    def _cut(self, every: float | None, text: dict[str, Any] | None) -> tuple[float, int, float]:
        """(seconds of a window without text, units of a span, seconds to whole ones of which a recording is rounded
        up). Raises RecipeError."""
        if text is not None:
            self.whisper.require_language(text.get("language"), text.get("task"))
        window, unit = self._window, self.head.unit if self.head else UNIT
        if every is None:  # as many whole units as a window has
            units = max(int(window * RATE / (unit * STEP) + 1e-6), 1)
            window = min(window, units * unit * STEP / RATE)
        else:
            units = units_of(every, unit) if self.head else 1
        return window, units, window if every is None and text is None else STEP / RATE

    def _encode(self, gathered: list[_Gathering], window: float) -> list[tuple[tuple[Words, ...], str | None]]:
        """Windows of so many seconds of all recordings, as many at a time as there are recordings."""
        samples = round(window * RATE) // STEP * STEP
        waiting = [(one, _windows(one.recording, samples)) for one in gathered]
        batch: list[tuple[_Gathering, int, np.ndarray]] = []
        for one, windows in waiting:
            for number, waveform in enumerate(windows):
                if not one.wants(number * samples // STEP):
                    continue
                batch.append((one, number * samples // STEP, waveform))
                if len(batch) == len(gathered):
                    self._pass(batch, window)
                    batch = []
        if batch:
            self._pass(batch, window)
        for one in gathered:
            one.finish()
        return [((), None) for _ in gathered]

    @property
    def _window(self) -> float:
        """Seconds of a window where there is no text."""
        return min(self.head.seconds if self.head else 30.0, self.whisper.longest)

    def _pass(self, batch: list[tuple[_Gathering, int, np.ndarray]], window: float) -> None:
        pad_with = self.head.pad_with if self.head else "silence"
        mel = short([waveform for *_, waveform in batch], self.whisper.mels, window, pad_with)
        blocks = self.whisper(mel).blocks
        for row, (one, first, _) in enumerate(batch):
            one.add(first, [block[row] for block in blocks])

    @torch.no_grad()
    def _write(self, gathered: list[_Gathering], options: dict[str, Any]) -> list[tuple[tuple[Words, ...], str | None]]:
        """Short recordings in one batch, each long one by itself, since only a short one is held whole."""
        longest = self.whisper.longest
        brief = [one for one in gathered if one.recording.seconds <= longest]
        done: dict[int, tuple[tuple[Words, ...], str]] = {}
        if brief:
            waveforms = [np.concatenate(list(one.recording.blocks())) for one in brief]
            mel = short(waveforms, self.whisper.mels, longest)
            for one, result in zip(brief, self._generate(brief, mel.to(self._like), options)):
                done[id(one)] = result
        for one in gathered:
            if id(one) not in done:
                (done[id(one)],) = self._generate([one], LongMel(one.recording, self.whisper.mels, self._like), options)
            one.finish()
        return [done[id(one)] for one in gathered]

    @property
    def _like(self) -> torch.Tensor:
        """A tensor on the encoder's device, of its type."""
        return next(self.whisper.encoder.parameters())

    def _generate(
        self, gathered: Sequence[_Gathering | _Piece], mel: Any, options: dict[str, Any]
    ) -> list[tuple[tuple[Words, ...], str]]:
        listening = Listening(self.whisper, len(gathered), lambda row, first, blocks: gathered[row].add(first, blocks))
        with listening.heard():
            made = self.whisper.generator.generate(
                mel, return_timestamps=True, return_segments=True, monitor_progress=listening.progress, **options
            )
        texts = self.tokenizer.batch_decode(made["sequences"], skip_special_tokens=True)
        return [
            (tuple(self._words(segment) for segment in segments), text)
            for segments, text in zip(made["segments"], texts)
        ]

    def _words(self, segment: dict[str, Any]) -> Words:
        text = self.tokenizer.decode(segment["tokens"], skip_special_tokens=True)
        return Words(round(float(segment["start"]), 2), round(float(segment["end"]), 2), text)


class _Gathering:
    """A recording, and its spans as they become known."""

    def __init__(
        self,
        recording: Sound,
        units: int,
        head: Head | None,
        heard: Callable[[float], None],
        window: float,
    ) -> None:
        """window: seconds, to whole ones of which the recording is rounded up."""
        self.recording, self._units, self._head, self._heard = recording, units, head, heard
        self._whole = round(window * RATE)
        self._sums = Units(None, head.unit if head else UNIT)
        self._span = units * (head.unit if head else UNIT) * STEP / RATE  # seconds
        self._spans: list[Span] = []
        self._judged = 0  # spans

    def ends(self) -> None:
        """The recording's length is known. What is behind its last span and shorter than any is left out: a file of
        5.001 s has one span of 5 s."""
        samples, span = self.recording.samples, round(self._span * RATE)
        if samples > span and samples % span < SHORTEST * RATE:
            samples -= samples % span
        self._sums.ends(-(-samples // self._whole) * self._whole)

    def wants(self, first: int) -> bool:
        """Whether there is anything from this step on."""
        return first < self._sums.steps

    def spans(self) -> list[Span]:
        """Those that became known since this was asked."""
        known, self._spans = self._spans, []
        return known

    def add(self, first: int, blocks: list[torch.Tensor]) -> None:
        """Take in a window: the output [steps, D] of every block, from step `first` of the recording on."""
        begin, end = self._sums.room(first, len(blocks[0]))
        self._heard((end - begin) * STEP / RATE)
        if self._head is None:
            self._sums.pass_over(first, len(blocks[0]))
            return
        self._sums.add(first, self._head.of(blocks))
        self._judge(rest=False)

    def finish(self) -> None:
        """All windows were taken in."""
        if self._head is not None:
            self._judge(rest=True)

    def _judge(self, rest: bool) -> None:
        whole: list[torch.Tensor] = []
        while (features := self._sums.take(self._units)) is not None:
            whole.append(features)
        last = self._sums.take(self._units, rest=True) if rest else None
        for features in ([torch.stack(whole)] if whole else []) + ([] if last is None else [last[None]]):
            assert self._head is not None
            for probabilities in self._head(features):
                start = self._judged * self._span
                end = min(start + self._span, self.recording.seconds)
                self._spans.append(Span(round(start, 2), round(end, 4), probabilities))
                self._judged += 1


@dataclass(frozen=True)
class _Piece:
    """A part of a stream that is encoded as a recording of its own."""

    whole: _Gathering
    first: int  # step of the stream
    steps: int

    def add(self, first: int, blocks: list[torch.Tensor]) -> None:
        """Take in a window of the piece; behind its end is silence that the stream does not have."""
        if (steps := self.steps - first) > 0:
            self.whole.add(self.first + first, [block[:steps] for block in blocks])


def _pieces(stream: Stream, seconds: float) -> Iterator[np.ndarray]:
    """float32 pieces of a stream, one behind the other, up to so long."""
    most = round(seconds * RATE)
    held = np.zeros(0, np.float32)
    for block in stream.blocks():
        held = np.concatenate([held, block])
        while len(held) >= most:
            cut = _quietest(held[:most])
            yield held[:cut]
            held = held[cut:]
    if len(held):
        yield held


def _quietest(waveform: np.ndarray) -> int:
    """The sample in the last third of a waveform, on a step, around which 0.2 s are quietest; the last of several."""
    power = np.square(waveform.reshape(-1, STEP)).sum(1)
    around = np.convolve(power, np.ones(10), "valid")  # number k is of the steps k to k + 9
    third = len(power) // 3
    return (len(around) - 1 - int(np.argmin(around[: -third - 1 : -1])) + 5) * STEP


def _windows(recording: Sound, samples: int) -> Iterator[np.ndarray]:
    """float32 [samples] of a recording, one behind the other; the last one is shorter."""
    held = np.zeros(0, np.float32)
    for block in recording.blocks():
        held = np.concatenate([held, block])
        while len(held) >= samples:
            yield held[:samples]
            held = held[samples:]
    if len(held):
        yield held
