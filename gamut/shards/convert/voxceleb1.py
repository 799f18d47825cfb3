"""VoxCeleb1 as speaker identification (A. Nagrani et al., "VoxCeleb: a large-scale speaker identification dataset",
Interspeech 2017)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gamut.errors import ShardError
from gamut.shards.convert.source import SPLIT, Listing, Missing, Record, Source, key_of, slashed
from gamut.shards.convert.table import integer, rows
from gamut.shards.convert.tree import Folders, find_one

TABLE = "iden_split.txt"
SPLITS = {"train": (1,), "dev": (2,), "test": (3,)}
SPEAKER = re.compile(r"id\d{5}")
DEPTH = 4  # at most so many folders between SRC and the speakers: wav/, vox1_dev_wav/wav/, dev/wav/ ...


class VoxCeleb1(Source):
    """`iden_split.txt` (lines `1 id10001/1zcIwhmdeo4/00001.wav`: 1 train, 2 dev, 3 test) and the unpacked archives.

    Dev and test archives may be unpacked into one `wav/` or two. Classes are the speakers, 1,251 of them. Columns:
    `split` (as in the file) and `speaker` (the number in id10001).
    """

    expects = f"{TABLE}, and wav/id10001/VIDEO/00001.wav of one or both archives, at most {DEPTH} folders down"

    def list(self, folder: Path) -> Listing:
        """One record a clip that is there, one `Missing` a clip that is not. Raises ShardError."""
        source = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt"
        table = find_one(folder, TABLE, f"Download it from {source} and put it beside the audio.")
        places = _places(folder)
        if not places:
            raise ShardError(
                f"{folder} has no folders id10001, id10002, ... below it. Unpack VoxCeleb1's archives there."
            )
        speakers = sorted({_split(table, line, fields)[1].split("/")[0] for line, fields in rows(table, delimiter=" ")})
        classes = {speaker: number for number, speaker in enumerate(speakers)}
        ignored = Counter[str]()
        made = _records(folder, table, places, classes, ignored)
        return Listing("voxceleb1", tuple(speakers), (SPLIT, "speaker"), made, ignored, {SPLIT: SPLITS})


def _places(folder: Path) -> list[str]:
    """The folders that hold speakers' folders, relative, in order."""
    found, level = [], [""]
    for _ in range(DEPTH):
        deeper = []
        for place in level:
            inside = _folders(folder / place)
            if any(SPEAKER.fullmatch(name) for name in inside):
                found.append(place)
            else:
                deeper += [os.path.join(place, name) for name in inside if not name.startswith(".")]
        level = deeper
    return found


def _folders(place: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
    except OSError as error:
        raise ShardError(f"{place} cannot be listed: {error.strerror}.") from error


def _split(table: Path, line: int, fields: list[str]) -> tuple[int, str]:
    split = integer(table, line, "the split", fields[0])
    path = slashed(fields[-1])
    if split not in (1, 2, 3) or len(fields) != 2 or not re.fullmatch(r"id\d{5}/[\w-]+/[\w-]+\.wav", path):
        raise ShardError(
            f"{table}, line {line} is {' '.join(fields)!r}; a line must look like `1 id10001/1zcIwhmdeo4/00001.wav`."
        )
    return split, path


def _records(
    folder: Path, table: Path, places: list[str], classes: dict[str, int], ignored: Counter[str]
) -> Iterator[Record | Missing]:
    present = Folders()
    where: dict[str, list[str]] = {}  # speaker -> the places that have it
    for place in places:
        for speaker in _folders(folder / place):
            where.setdefault(speaker, []).append(place)
    seen: dict[str, int] = {}
    for line, fields in rows(table, delimiter=" "):
        split, path = _split(table, line, fields)
        if path in seen:
            if seen[path] != split:
                raise ShardError(f"{table}, line {line}: {path} is in both split {split} and split {seen[path]}.")
            ignored["repeated clips"] += 1
            continue
        seen[path] = split
        speaker = path.split("/")[0]
        key = key_of(path.removesuffix(".wav"))
        # Converted copies keep the name and change the ending.
        candidates = [
            str(folder / place / path.removesuffix(".wav")) + suffix
            for place in where.get(speaker, ())
            for suffix in (".wav", ".flac", ".m4a")
        ]
        file = next((found for one in candidates if (found := present.find(one))), None)
        if file is None:
            yield Missing(key, path, split)
            continue
        yield Record(
            key=key,
            path=file,
            labels=(classes[speaker],),
            columns={SPLIT: split, "speaker": int(speaker[2:])},
            provenance={"file": os.path.relpath(file, folder)},
        )
