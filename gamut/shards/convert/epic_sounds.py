"""EPIC-SOUNDS (J. Huh et al., "Epic-Sounds: A Large-scale Dataset of Actions That Sound", ICASSP 2023)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gamut.audio.kinds import is_sound
from gamut.audio.segment import Segment
from gamut.errors import ShardError
from gamut.shards.convert.source import SPLIT, Listing, Missing, Record, Source, key_of
from gamut.shards.convert.table import integer, number, records
from gamut.shards.convert.tree import preference, walk
from gamut.shards.labels import filled

RATE = 24_000  # Hz, of the published HDF5 and of the samples in the tables
TABLES = {
    "EPIC_Sounds_train.csv": "train",
    "EPIC_Sounds_validation.csv": "validation",
    "EPIC_Sounds_recognition_test_timestamps.csv": "test",  # without classes
}
SPLITS = {"train": (0,), "validation": (1,), "test": (2,)}
NEEDED = ("annotation_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
ARRAYS = (".hdf5", ".h5")


class EpicSounds(Source):
    """The published CSV tables, and EPIC_audio.hdf5 (an array of 24 kHz samples a video) or P01_01.wav and so on.

    A clip is a segment of a video's audio; only the segment is read. Classes are the 44 of the tables, by their id; the
    test segments have none. Columns: `split` (0 train, 1 validation, 2 test) and `participant` (the number in P01).
    """

    expects = "EPIC_Sounds_train.csv, EPIC_Sounds_validation.csv (either or both), and EPIC_audio.hdf5 or P01_01.wav"

    def list(self, folder: Path) -> Listing:
        """One record for each annotated segment whose video is there. Raises ShardError."""
        tables: dict[str, Path] = {}
        audio: dict[str, str] = {}  # video -> file, relative
        arrays: list[str] = []
        for place, files in walk(folder):
            for name in files:
                path, (stem, suffix) = os.path.join(place, name), os.path.splitext(name)
                if name in TABLES:
                    tables.setdefault(name, folder / path)
                elif suffix.lower() in ARRAYS:
                    arrays.append(path)
                elif is_sound(name):
                    audio[stem] = min(audio.get(stem, path), path, key=preference)
        if not tables or not (arrays or audio):
            lacking = "HDF5 file or recordings" if tables else " or ".join(TABLES)
            raise ShardError(
                f"{folder} has no {lacking}. Download the tables from "
                "https://github.com/epic-kitchens/epic-sounds-annotations and put them beside the audio."
            )
        members = {video: path for path in arrays for video in _members(folder / path)}
        names = _classes(tables)
        ignored = Counter[str]()
        made = _records(folder, tables, audio, members, ignored)
        return Listing("epic-sounds", names, (SPLIT, "participant"), made, ignored, {SPLIT: SPLITS})


def _members(path: Path) -> list[str]:
    import h5py  # takes a while to import, which only this needs

    try:
        with h5py.File(path, "r") as file:
            return list(file)
    except OSError as error:
        raise ShardError(f"{path} cannot be read as HDF5: {error}.") from error


def _classes(tables: dict[str, Path]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for table in tables.values():
        for line, row in records(table, NEEDED):
            if not row.get("class_id"):
                continue
            label = integer(table, line, "class_id", row["class_id"])
            if label < 0:
                raise ShardError(f"{table}, line {line}: class_id is {label}; it must not be below 0.")
            name = row.get("class", "")
            if names.setdefault(label, name) != name:
                raise ShardError(f"{table}, line {line}: class_id {label} is both {names[label]!r} and {name!r}.")
    return tuple(filled(names))


def _records(
    folder: Path, tables: dict[str, Path], audio: dict[str, str], members: dict[str, str], ignored: Counter[str]
) -> Iterator[Record | Missing]:
    seen: set[str] = set()
    for name, table in tables.items():
        split = SPLITS[TABLES[name]][0]
        for line, row in records(table, NEEDED):
            key, video = key_of(row["annotation_id"]), row["video_id"]
            if key in seen:
                raise ShardError(f"{table}, line {line}: the annotation {row['annotation_id']} is listed twice.")
            seen.add(key)
            start, end = (_time(table, line, row, which) for which in ("start", "stop"))
            if end <= start:
                ignored["segments that end before they begin"] += 1
                continue
            if video not in members and video not in audio:
                yield Missing(key, f"{video}.wav, or {video} in an HDF5 file", split)
                continue
            member = video if video in members else ""
            file = members.get(video) or audio[video]
            participant = row["participant_id"].lstrip("P")
            yield Record(
                key=key,
                path=str(folder / file),
                labels=(integer(table, line, "class_id", row["class_id"]),) if row.get("class_id") else (),
                columns={SPLIT: split, "participant": integer(table, line, "participant_id", participant)},
                provenance={"file": file, "video": video, "description": row.get("description", "")},
                segment=Segment(start, end, member, RATE if member else 0),
            )


def _time(table: Path, line: int, row: dict[str, str], which: str) -> float:
    """Seconds, to the sample where the table states samples; the test table has only HH:MM:SS.fff."""
    if row.get(f"{which}_sample"):
        return integer(table, line, f"{which}_sample", row[f"{which}_sample"]) / RATE
    parts = row[f"{which}_timestamp"].split(":")
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + number(table, line, f"{which}_timestamp", part)
    return seconds
