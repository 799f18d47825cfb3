"""Speech Commands (P. Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", 2018).

V2: every word is a class, 35 of them. V1: ten words, `_unknown_` and `_silence_`, as TensorFlow's official recipe
(examples/speech_commands/input_data.py) makes them: of the other words' recordings, and of pieces of the background
noise at a volume between 0 and 1, each split gets a tenth of the number of its wanted recordings. Where the recipe
draws at random, a hash decides here, so that every conversion makes the same choice.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import soundfile

from gamut.audio.kinds import is_sound
from gamut.audio.segment import Segment
from gamut.errors import ShardError, nearest
from gamut.shards.convert.source import SPLIT, Listing, Missing, Record, Source, hash_of, key_of, slashed
from gamut.text import read_lines

NOISE = "_background_noise_"
SILENCE, UNKNOWN = "_silence_", "_unknown_"
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ONLY_V2 = {"backward", "follow", "forward", "learn", "visual"}
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
SPLITS = {"train": (0,), "validation": (1,), "test": (2,)}
SHARE = 0.10  # of the wanted recordings of a split: silence, and unknown words
WORD = re.compile(r"[a-z]+/[0-9a-f]+_nohash_\d+")  # how the authors name a recording
COMPARED = 5_000  # names that a mistyped one is compared with
SECONDS = 1.0  # of a piece of silence


class SpeechCommands(Source):
    """`WORD/SPEAKER_nohash_TAKE.wav`, `validation_list.txt`, `testing_list.txt`, `_background_noise_/*.wav`.

    A folder with all of V1's ten commands and none of the words that only V2 has is V1. Columns: `split` (0 train,
    1 validation, 2 test; by the lists) and `take` (the number after `_nohash_`; -1 where a name has none).
    """

    expects = "the unpacked V1 or V2: WORD/*.wav, validation_list.txt, testing_list.txt, _background_noise_/*.wav"

    def list(self, folder: Path) -> Listing:
        """One record for each recording or piece of silence. Raises ShardError."""
        words = sorted(
            entry.name for entry in _scan(folder) if entry.is_dir() and not entry.name.startswith((".", "_"))
        )
        if not words:
            raise ShardError(f"{folder} is not Speech Commands: it has no folders named after words.")
        first = set(COMMANDS) <= set(words) and not ONLY_V2 & set(words)
        names = (SILENCE, UNKNOWN, *COMMANDS) if first else tuple(words)
        splits = _lists(folder)
        ignored = Counter[str]()
        recordings = _recordings(folder, words, ignored)
        _refuse_unknown(folder, splits, recordings, {word.lower() for word in words})
        made = _twelve(folder, recordings, splits, ignored) if first else _words(folder, recordings, splits, words)
        whole: Iterator[Record | Missing] = itertools.chain(made, _missing(recordings, splits))
        return Listing("speechcommands", names, (SPLIT, "take"), whole, ignored, {SPLIT: SPLITS})


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ShardError(f"{folder} cannot be listed: {error.strerror}.") from error


def _lists(folder: Path) -> dict[str, int]:
    """`WORD/FILE` without its ending -> split, for those outside the training split."""
    splits: dict[str, int] = {}
    for split, name in LISTS.items():
        if not (folder / name).exists():
            raise ShardError(f"{folder / name}, which lists what is not for training, is not there.")
        for line in read_lines(folder / name, ShardError):
            stem = os.path.splitext(slashed(line).removeprefix("./"))[0]
            if not stem:
                continue
            if splits.setdefault(stem, SPLITS[split][0]) != SPLITS[split][0]:
                raise ShardError(f"{line} is in both {' and '.join(LISTS.values())} of {folder}.")
    return splits


def _refuse_unknown(folder: Path, splits: dict[str, int], recordings: dict[str, str], words: set[str]) -> None:
    """Raise ShardError for a listed name that is no file: the file that it means would be trained on.

    Names of a word without a folder are those of a copy with some of the words only.
    """
    unknown = [stem for stem in splits if stem not in recordings]
    unknown = [stem for stem in unknown if not WORD.fullmatch(stem) or stem.split("/")[0].lower() in words]
    if unknown:
        first = unknown[0]
        word, _, name = first.rpartition("/")
        like = [stem for stem in recordings if stem.endswith(f"/{name}") or stem.startswith(f"{word}/")]
        raise ShardError(
            f"{len(unknown)} names in {' and '.join(LISTS.values())} are no files of {folder}, the first of them "
            f"{first!r}{nearest(first, like[:COMPARED] or [*recordings][:COMPARED])}. Write it as the file is called; "
            "if the file is gone, take the line out, so that it is clear what is trained on."
        )


def _recordings(folder: Path, words: Iterable[str], ignored: Counter[str]) -> dict[str, str]:
    """`WORD/FILE` without its ending -> path relative to the folder, in order."""
    found: dict[str, str] = {}
    for word in words:
        for entry in _scan(folder / word):
            if not is_sound(entry.name):
                ignored["files that are not sound"] += 1
            elif found.setdefault(os.path.splitext(path := f"{word}/{entry.name}")[0], path) != path:
                ignored["further files of one clip"] += 1
    return found


def _record(folder: Path, stem: str, path: str, label: int, split: int) -> Record:
    take = stem.rpartition("_nohash_")[2]
    return Record(
        key=key_of(stem),
        path=str(folder / path),
        labels=(label,),
        columns={SPLIT: split, "take": int(take) if take.isascii() and take.isdigit() else -1},
        provenance={"file": path, "word": stem.split("/")[0]},
    )


def _words(folder: Path, recordings: dict[str, str], splits: dict[str, int], words: list[str]) -> Iterator[Record]:
    classes = {word: number for number, word in enumerate(words)}
    for stem, path in recordings.items():
        yield _record(folder, stem, path, classes[stem.split("/")[0]], splits.get(stem, 0))


def _twelve(
    folder: Path, recordings: dict[str, str], splits: dict[str, int], ignored: Counter[str]
) -> Iterator[Record]:
    wanted: Counter[int] = Counter()
    others: dict[int, list[str]] = {split: [] for (split,) in SPLITS.values()}
    for stem, path in recordings.items():
        word, split = stem.split("/")[0], splits.get(stem, 0)
        if word in COMMANDS:
            wanted[split] += 1
            yield _record(folder, stem, path, 2 + COMMANDS.index(word), split)
        else:
            others[split].append(stem)
    noises = _noises(folder, ignored)
    for split, stems in others.items():
        size = math.ceil(wanted[split] * SHARE)
        chosen = sorted(stems, key=hash_of)[:size]
        ignored["recordings of unknown words beyond the tenth that the recipe takes"] += len(stems) - len(chosen)
        for stem in sorted(chosen):
            yield _record(folder, stem, recordings[stem], 1, split)
        if size and not noises:
            raise ShardError(f"{folder} has no {NOISE}/*.wav of at least {SECONDS} s to cut silence from.")
        yield from (_silence(folder, noises, split, number) for number in range(size))


def _noises(folder: Path, ignored: Counter[str]) -> list[tuple[str, float]]:
    """(path relative to the folder, seconds) of every noise that is long enough."""
    noises = []
    for entry in _scan(folder / NOISE) if (folder / NOISE).is_dir() else ():
        if is_sound(entry.name):
            try:
                seconds = soundfile.info(entry.path).duration
            except soundfile.LibsndfileError as error:
                raise ShardError(f"{entry.path} is not a sound file: {error.error_string}") from error
            if seconds >= SECONDS:
                noises.append((f"{NOISE}/{entry.name}", seconds))
            else:
                ignored["background noises that are too short"] += 1
    return noises


def _silence(folder: Path, noises: list[tuple[str, float]], split: int, number: int) -> Record:
    name = next(name for name, values in SPLITS.items() if values == (split,))
    key = f"{SILENCE.strip('_')}/{name}-{number:05d}"
    path, seconds = noises[hash_of(f"{key} of") % len(noises)]
    start = _unit(f"{key} at") * (seconds - SECONDS)
    start = math.floor(start * 1000) / 1000
    return Record(
        key=key,
        path=str(folder / path),
        labels=(0,),
        columns={SPLIT: split, "take": number},
        provenance={"file": path, "word": SILENCE},
        segment=Segment(start, start + SECONDS, gain=_unit(f"{key} volume")),
    )


def _unit(text: str) -> float:
    """In [0, 1)."""
    return (hash_of(text) >> 11) / 2**53


def _missing(recordings: dict[str, str], splits: dict[str, int]) -> Iterator[Missing]:
    for stem, split in splits.items():
        if stem not in recordings:
            yield Missing(key_of(stem), f"{stem}.wav", split)
