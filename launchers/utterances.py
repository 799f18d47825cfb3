"""Utterances of 4 to 30 s made of spoken digits: speaker identification at native length, in place of VoxCeleb1.

Each is a string of one speaker's digits, drawn with replacement and cut at a length drawn from U(4, 30) s. Recordings
10 to 49 of every speaker and word make the training utterances, 0 to 4 (the official test split) the test utterances:
no recording is in both, but all test utterances of a speaker share the same 50 recordings, 300 in all, so they are not
independent trials. With --spoken N they are N strings of eight test recordings, paused, with what is said (`text`)
in place of labels: speech to recognise, for `python -m gamut.analyse noise`.

DIGITS is the Free Spoken Digit Dataset in the layout of Speech Commands: WORD/SPEAKER_nohash_INDEX.wav.

Examples:
    python launchers/utterances.py fsdd runs/utterances-wav
    python -m gamut.shards convert csv runs/utterances-wav data/utterances
    python -m gamut.shards stats data/utterances

    python launchers/utterances.py fsdd runs/spoken-wav --spoken 40
    python -m gamut.shards convert csv runs/spoken-wav data/spoken --folds 0
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

import numpy as np
import soundfile

from gamut.commands import command, positive
from gamut.errors import ShardError
from gamut.files import write_text

SPLITS = {"train": range(10, 50), "test": range(5)}  # recordings of each
SECONDS = (4.0, 30.0)
SPOKEN, PAUSE = 8, 0.25  # digits of a string that is to be recognised, and seconds around each of them


class Digit(NamedTuple):
    """A recording of a word, int16 [samples] at 8 kHz."""

    word: str
    wave: np.ndarray


def recordings(digits: Path) -> dict[str, dict[str, list[Digit]]]:
    """split -> speaker -> recordings, in a fixed order. Raises ShardError where there are none."""
    found: dict[str, dict[str, list[Digit]]] = {split: {} for split in SPLITS}
    for path in sorted(digits.glob("*/*_nohash_*.wav")):
        speaker, _, index = path.stem.partition("_nohash_")
        for split, indices in SPLITS.items():
            if index.isdigit() and int(index) in indices:
                wave, rate = soundfile.read(path, dtype="int16")
                if rate != 8000 or wave.ndim != 1:
                    raise ShardError(f"{path} must be 8 kHz and mono, not {rate} Hz with {wave.ndim} channels.")
                found[split].setdefault(speaker, []).append(Digit(path.parent.name, wave))
    if not all(found.values()):
        raise ShardError(
            f"{digits} has no digits WORD/SPEAKER_nohash_INDEX.wav with the indices 0 to 4 and 10 to 49: give the Free "
            "Spoken Digit Dataset in the layout of Speech Commands."
        )
    return found


def utterance(digits: list[Digit], samples: int, random: np.random.Generator) -> np.ndarray:
    """int16 [samples]: digits drawn with replacement, one after another; the last is cut."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < samples:
        parts.append(digits[int(random.integers(len(digits)))].wave)
    return np.concatenate(parts)[:samples]


def string_together(digits: Path, folder: Path, train: int = 1200, test: int = 300, seed: int = 0) -> Path:
    """Write SPLIT/NUMBER.wav and utterances.csv (path, labels, split) below `folder`; speakers take turns."""
    found = recordings(digits)
    rows: list[tuple[str, ...]] = []
    for number_of_split, (split, count) in enumerate({"train": train, "test": test}.items()):
        random = np.random.default_rng([seed, number_of_split])
        speakers = sorted(found[split])
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            speaker = speakers[number % len(speakers)]
            samples = round(8000 * random.uniform(*SECONDS))
            path = f"{split}/{split}-{number:05d}.wav"
            wave = utterance(found[split][speaker], samples, random)
            soundfile.write(folder / path, wave, 8000, subtype="PCM_16")
            rows.append((path, speaker, split))
    return _list(folder, [("path", "labels", "split"), *rows])


def string_spoken(digits: Path, folder: Path, count: int, seed: int = 0) -> Path:
    """Write NUMBER.wav, SPOKEN different test recordings of one speaker with pauses, and utterances.csv (path, text)
    below `folder`; speakers take turns."""
    found = recordings(digits)["test"]
    random, speakers = np.random.default_rng([seed, len(SPLITS)]), sorted(found)
    pause, rows = np.zeros(round(8000 * PAUSE), np.int16), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        of = found[speakers[number % len(speakers)]]
        said = [of[place] for place in random.permutation(len(of))[:SPOKEN]]
        wave = np.concatenate([pause, *(part for one in said for part in (one.wave, pause))])
        soundfile.write(folder / f"{number:05d}.wav", wave, 8000, subtype="PCM_16")
        rows.append((f"{number:05d}.wav", " ".join(one.word.upper() for one in said)))
    return _list(folder, [("path", "text"), *rows])


def _list(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(folder / "utterances.csv", text.getvalue())  # written last: if it exists, all utterances do
    return folder


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("digits", type=Path)
    parser.add_argument("folder", type=Path, help="where the WAV files and utterances.csv go")
    parser.add_argument("--train", type=int, default=1200, help="utterances")
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument(
        "--spoken", type=positive, default=None, metavar="N", help="N strings with what is said, instead"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.spoken:
        folder = string_spoken(options.digits, options.folder, options.spoken, options.seed)
        print(f"{options.spoken} utterances of {SPOKEN} digits: {folder / 'utterances.csv'}")
        return 0
    folder = string_together(options.digits, options.folder, options.train, options.test, options.seed)
    print(f"{options.train} and {options.test} utterances: {folder / 'utterances.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
