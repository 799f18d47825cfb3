"""LibriSpeech (V. Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gamut.errors import ShardError
from gamut.shards.convert.source import SPLIT, Listing, Missing, Record, Source
from gamut.shards.convert.tree import walk
from gamut.text import read_lines

# A split's number is its place here, so sets made of other archives agree.
SPLITS = (
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip
GROUPS = {"train": (0, 1, 2), "dev": (3, 4), "test": (5, 6)}
TRANSCRIPT = re.compile(r"(\d+)-(\d+)\.trans\.txt")


class LibriSpeech(Source):
    """`SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac` and `SPEAKER-CHAPTER.trans.txt`, of any archives.

    Clips have no labels; the transcript is `text` in KEY.json. Columns: `split`, `speaker`, `chapter`, `utterance`.
    """

    expects = "LibriSpeech/ or a folder above: SPLIT/SPEAKER/CHAPTER/*.flac and *.trans.txt of any of the archives"

    def list(self, folder: Path) -> Listing:
        """One record an utterance. Raises ShardError."""
        ignored = Counter[str]()
        columns = (SPLIT, "speaker", "chapter", "utterance")
        splits: dict[str, tuple[int, ...]] = {name: (number,) for number, name in enumerate(SPLITS)}
        return Listing("librispeech", (), columns, _records(folder, ignored), ignored, {SPLIT: splits | GROUPS})


def _records(folder: Path, ignored: Counter[str]) -> Iterator[Record | Missing]:
    transcripts = 0
    for place, files in walk(folder):
        tables = [match for name in files if (match := TRANSCRIPT.fullmatch(name))]
        flacs = {name.lower(): name for name in files if name.lower().endswith((".flac", ".wav"))}
        split = next((part for part in reversed((*folder.resolve().parts, *place.split("/"))) if part in SPLITS), None)
        for match in tables:
            transcripts += 1
            table = folder / place / match[0]
            if split is None:
                raise ShardError(f"{table} must be below one of LibriSpeech's folders {', '.join(SPLITS)}.")
            for line, text in enumerate(read_lines(table, ShardError), 1):
                if not text:
                    continue
                name, _, words = text.partition(" ")
                if not re.fullmatch(rf"{match[1]}-{match[2]}-\d+", name):
                    raise ShardError(f"{table}, line {line} must begin with an utterance of {match[1]}-{match[2]}.")
                file = flacs.pop(f"{name}.flac", None) or flacs.pop(f"{name}.wav", None)
                number = SPLITS.index(split)
                if file is None:
                    yield Missing(name, os.path.join(place, f"{name}.flac"), number)
                    continue
                speaker, chapter, utterance = map(int, name.split("-"))
                yield Record(
                    key=name,
                    path=str(folder / place / file),
                    labels=(),
                    text=words.strip(),
                    columns={SPLIT: number, "speaker": speaker, "chapter": chapter, "utterance": utterance},
                    provenance={"file": os.path.join(place, file)},
                )
        ignored["sound files without a line in a transcript"] += len(flacs)
    if not transcripts:
        raise ShardError(f"{folder} is not LibriSpeech: no SPEAKER-CHAPTER.trans.txt is below it.")
