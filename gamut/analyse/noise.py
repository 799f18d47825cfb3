"""Speech mixed with environmental sounds: how many errors each class of sound adds (Whisper-AT, Figures 1 and 2).

Every utterance is mixed with one sound of every class at every signal-to-noise ratio, the sound tiled or cut to the
speech, and transcribed. Word error rates are pooled over words, which are made alike first: as Whisper's authors do, or
as Whisper-AT's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import torch
from torchaudio.functional import add_noise

from gamut.data.reader import open_reader
from gamut.errors import RunError, ShardError
from gamut.numbers import RATE
from gamut.shards import Index
from gamut.shards.read import texts
from gamut.shards.select import sample

LONGEST = 30.0  # seconds: what a recogniser hears at once
FIGURES = r"(\d+|one)( (\d+|one))*"  # figures alone, as the normaliser writes them
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Transcriber = Callable[[list[np.ndarray]], list[str]]  # float32 [samples] at 16 kHz each -> text each


@dataclass(frozen=True)
class Material:
    """Utterances, and for each class its sounds; all float32 [samples] in [-1, 1)."""

    speech: list[np.ndarray]
    text: list[str]  # what is said, in plain words
    sounds: list[list[np.ndarray]]  # of each class
    labels: list[str]

    def noise(self, number: int, utterance: int) -> np.ndarray:
        """The sound of class `number` that this utterance is mixed with, tiled or cut to its length."""
        sounds = self.sounds[number]
        return np.resize(sounds[utterance % len(sounds)], len(self.speech[utterance]))


@dataclass(frozen=True)
class Errors:
    """Word errors and words, each int64; the clean speech has no class."""

    wrong: np.ndarray  # [ratios, classes]
    words: np.ndarray  # [ratios, classes]
    clean: tuple[int, int]
    silent: int  # mixtures whose sound was silent, so that they are the speech itself

    @property
    def rates(self) -> np.ndarray:
        """float64 [ratios]: WER over all classes."""
        return self.wrong.sum(1) / np.maximum(self.words.sum(1), 1)

    @property
    def by_class(self) -> np.ndarray:
        """float64 [ratios, classes]"""
        return self.wrong / np.maximum(self.words, 1)


def plain(text: str) -> str:
    """Upper case, without punctuation; an apostrophe does not part a word (DONT), as in Whisper-AT."""
    joined = re.sub("['\N{RIGHT SINGLE QUOTATION MARK}]", "", text.upper())
    return " ".join(re.sub(r"[\W_]+", " ", joined).split())


@functools.cache
def _normaliser(english: bool) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer({}) if english else BasicTextNormalizer()


def normal(text: str, english: bool = True) -> str:
    """As Whisper's authors make texts alike before they score them (Radford et al. 2022, appendix C), by transformers'
    normaliser: numbers in figures, contractions written out, fillers left out; spellings of one word stay apart. Of
    another language than English: lower case without punctuation."""
    return _normaliser(english)(text)


def word_errors(spoken: Sequence[str], heard: Sequence[str], alike: Callable[[str], str] = normal) -> tuple[int, int]:
    """(substitutions, deletions and insertions; words spoken) of pairs of texts, both made `alike`. Where all that is
    said is figures, each figure is a word: SEVEN TWO is heard as `72`, `7 2` or `7, 2`."""
    pairs = []
    for one, other in zip(spoken, heard, strict=True):
        by_figure = re.fullmatch(FIGURES, alike(one)) is not None
        pairs.append([_figures(alike(_spelt(text))) if by_figure else alike(text) for text in (one, other)])
    found = jiwer.process_words([one for one, _ in pairs], [other for _, other in pairs])
    wrong = found.substitutions + found.deletions + found.insertions
    return wrong, found.hits + found.substitutions + found.deletions


def _spelt(text: str) -> str:
    """Figures as words: the normaliser takes `0 0 1` for less than three, and ZERO ZERO ONE for `001`."""
    return re.sub(r"\d", lambda figure: f" {WORDS[int(figure[0])]} ", text)


def _figures(text: str) -> str:
    """Each figure by itself. A 1 that stands alone the normaliser writes as a word."""
    return re.sub(r"(?<=\d)(?=\d)", " ", re.sub(r"\bone\b", "1", text))


def material(speech: Index, sounds: Index, utterances: int, of_class: int) -> Material:
    """Choose `utterances` of a set of speech and up to `of_class` sounds of each class of another, by hash: always the
    same ones.

    What is said is KEY.json's `text`, or where a set has none the clip's label (a spoken digit). Raises ShardError
    where clips have neither, or the sounds have no classes.
    """
    chosen = sample(speech, np.flatnonzero(np.asarray(speech.samples) <= LONGEST * RATE), 4 * utterances)
    said = texts(speech, chosen)
    if not any(said):
        said = [" ".join(speech.labels[label] for label in speech.label_ids(int(row))) for row in chosen]
    spoken = [(int(row), text) for row, text in zip(chosen, said) if plain(text)][:utterances]
    if not spoken:
        raise ShardError(
            f"The clips of {speech.folder} have neither a `text` in KEY.json nor labels. Convert a set with "
            "transcripts, such as librispeech, or one of single words, such as speechcommands."
        )
    target = [set(sounds.label_ids(row).tolist()) for row in range(len(sounds))]
    there = [number for number in range(len(sounds.labels)) if any(number in labels for labels in target)]
    if not there:
        raise ShardError(f"The clips of {sounds.folder} have no labels. Give a set whose clips have classes.")
    reader, other = open_reader(speech), open_reader(sounds)
    of = [sample(sounds, np.array([r for r, labels in enumerate(target) if n in labels]), of_class) for n in there]
    return Material(
        [reader.decode(row) / np.float32(32768) for row, _ in spoken],
        [text for _, text in spoken],
        [[other.decode(int(row)) / np.float32(32768) for row in rows] for rows in of],
        [sounds.labels[number] for number in there],
    )


def mixed(speech: np.ndarray, noise: np.ndarray, ratio: float) -> np.ndarray:
    """float32 [samples]: speech and noise of the same length at a signal-to-noise ratio in dB; a silent noise leaves
    the speech as it is."""
    if not np.any(noise) or not np.any(speech):
        return speech
    parts = (torch.from_numpy(np.ascontiguousarray(part))[None] for part in (speech, noise))
    return add_noise(*parts, torch.tensor([float(ratio)]))[0].numpy()


def measure(
    parts: Material,
    ratios: Sequence[float],
    transcribe: Transcriber,
    batch: int = 8,
    told: Callable[[float, float], None] = lambda ratio, rate: None,
    alike: Callable[[str], str] = normal,
) -> Errors:
    """Transcribe everything; `told(ratio, WER)` is called as each ratio is done, `alike` as of `word_errors`. Raises
    RunError where the recogniser does not return one text for each sound."""
    clean = word_errors(parts.text, list(_in_batches(parts.speech, transcribe, batch)), alike)
    classes, n = len(parts.labels), len(parts.speech)
    wrong, words = np.zeros((2, len(ratios), classes), np.int64)
    silent = 0
    for row, ratio in enumerate(ratios):
        for number in range(classes):
            noises = [parts.noise(number, utterance) for utterance in range(n)]
            silent += sum(not np.any(noise) for noise in noises)
            sounds = [mixed(speech, noise, ratio) for speech, noise in zip(parts.speech, noises)]
            heard = list(_in_batches(sounds, transcribe, batch))
            wrong[row, number], words[row, number] = word_errors(parts.text, heard, alike)
        told(ratio, wrong[row].sum() / max(words[row].sum(), 1))
    return Errors(wrong, words, clean, silent)


def _in_batches(sounds: Sequence[np.ndarray], transcribe: Transcriber, batch: int) -> Iterator[str]:
    for first in range(0, len(sounds), batch):
        given = list(sounds[first : first + batch])
        heard = transcribe(given)
        if len(heard) != len(given):
            raise RunError(f"The recogniser gave {len(heard)} texts for {len(given)} sounds.")
        yield from heard
