"""Utterances of 4 to 30 s made of spoken digits: speaker identification at native length, in place of VoxCeleb1.

Each is a string of one speaker's digits, drawn with replacement and cut at a length drawn from U(4, 30) s. Recordings
10 to 49 of every speaker and word make the training utterances, 0 to 4 (the official test split) the test utterances:
no recording is in both, but all test utterances of a speaker share the same 50 recordings, 300 in all, so they are not
independent trials.

DIGITS is the Free Spoken Digit Dataset in the layout of Speech Commands: WORD/SPEAKER_nohash_INDEX.wav.

Example:
    python launchers/utterances.py fsdd runs/utterances-wav
    python -m gamut.shards convert csv runs/utterances-wav data/utterances
    python -m gamut.shards stats data/utterances
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import soundfile

from gamut.commands import command
from gamut.errors import ShardError
from gamut.files import write_text

SPLITS = {"train": range(10, 50), "test": range(5)}  # recordings of each
SECONDS = (4.0, 30.0)


def recordings(digits: Path) -> dict[str, dict[str, list[np.ndarray]]]:
    """split -> speaker -> int16 waveforms at 8 kHz, in a fixed order. Raises ShardError where there are none."""
    found: dict[str, dict[str, list[np.ndarray]]] = {split: {} for split in SPLITS}
    for path in sorted(digits.glob("*/*_nohash_*.wav")):
        speaker, _, index = path.stem.partition("_nohash_")
        for split, indices in SPLITS.items():
            if index.isdigit() and int(index) in indices:
                wave, rate = soundfile.read(path, dtype="int16")
                if rate != 8000 or wave.ndim != 1:
                    raise ShardError(f"{path} must be 8 kHz and mono, not {rate} Hz with {wave.ndim} channels.")
                found[split].setdefault(speaker, []).append(wave)
    if not all(found.values()):
        raise ShardError(
            f"{digits} has no digits WORD/SPEAKER_nohash_INDEX.wav with the indices 0 to 4 and 10 to 49: give the Free "
            "Spoken Digit Dataset in the layout of Speech Commands."
        )
    return found


def utterance(digits: list[np.ndarray], samples: int, random: np.random.Generator) -> np.ndarray:
    """int16 [samples]: digits drawn with replacement, one after another; the last is cut."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < samples:
        parts.append(digits[int(random.integers(len(digits)))])
    return np.concatenate(parts)[:samples]


def string_together(digits: Path, folder: Path, train: int = 1200, test: int = 300, seed: int = 0) -> Path:
    """Write SPLIT/NUMBER.wav and utterances.csv (path, labels, split) below `folder`; speakers take turns."""
    found = recordings(digits)
    rows = []
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
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "labels", "split"), *rows])
    write_text(folder / "utterances.csv", text.getvalue())  # written last: if it exists, all utterances do
    return folder


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("digits", type=Path)
    parser.add_argument("folder", type=Path, help="where the WAV files and utterances.csv go")
    parser.add_argument("--train", type=int, default=1200, help="utterances")
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    folder = string_together(options.digits, options.folder, options.train, options.test, options.seed)
    print(f"{options.train} and {options.test} utterances: {folder / 'utterances.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
