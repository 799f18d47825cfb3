"""The data files of AST, PSLA, SSAST and Whisper-AT (Y. Gong et al.): {"data": [{"wav": ..., "labels": "mid,mid"}]}."""

from __future__ import annotations

import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import ShardError
from gamut.shards.convert.source import (
    SPLIT,
    Listing,
    Missing,
    Record,
    Source,
    Stems,
    hash_of,
    key_of,
    slashed,
    stem_of,
)
from gamut.shards.convert.table import class_labels
from gamut.shards.convert.tree import Folders
from gamut.text import open_text

CLASSES = "class_labels_indices.csv"
BLOCK = 1 << 20  # characters
MOST = 62  # files at once: one bit each
SCORED = re.compile("eval|test|val")  # in the name of a file whose clips are scored
FOLD = re.compile(r"fold[_-]?\d+|\d+$")  # its number in the name of a file
YOUTUBE = re.compile(r"Y?([\w-]{11})")  # the name of a clip of AudioSet
ABOVE = 3  # folders above the JSON file that relative paths may start from


class AstJson(Source):
    """One or several JSON files, and their class table (`index,mid,display_name`).

    Paths are absolute, or relative to the JSON file or to a folder at most three levels above it. Several files that
    share no clips become splits named after them. Where they share clips (folds, a balanced part of a whole), each
    becomes a column named after it, 1 for the clips that it lists: `subset: {esc_train_data_1: [1]}`; each clip is
    still written only once.
    """

    expects = f"FILE.json, or a folder of them, and *{CLASSES} beside them or in a folder above"
    of_file = True
    splits = True

    def list(self, folder: Path) -> Listing:
        """One record a clip that is there. Raises ShardError."""
        files = [folder] if folder.is_file() else sorted(folder.glob("*.json"))
        if not files or len(files) > MOST:
            raise ShardError(f"{folder} holds {len(files)} .json files; there must be 1 to {MOST}.")
        names, numbers = class_labels(_class_table(files[0].parent))
        seen = _look(files)
        stems = [key_of(file.stem) for file in files]
        ignored = Counter[str]()
        apart = not (seen.member & (seen.member - 1)).any()
        columns = (SPLIT,) if apart else tuple(stems)
        made = _records(files, numbers, seen, columns, ignored)
        splits = {SPLIT: {stem: (number,) for number, stem in enumerate(stems)}} if apart else {}
        name = files[0].stem if folder.is_file() else folder.resolve().name
        return Listing(name, names, columns, made, ignored, splits, _leaks(files, stems))


def _leaks(files: list[Path], stems: list[str]) -> list[str]:
    """A sentence for each pair of a file to train on and one to score on, of the same fold, that share clips: the same
    paths, or videos of YouTube by their ids."""
    said = []
    for train, score in itertools.product(range(len(files)), repeat=2):
        if "train" not in stems[train] or not SCORED.search(stems[score]) or _fold(stems[train]) != _fold(stems[score]):
            continue
        one, other = (
            np.fromiter((hash_of(_sound(entry["wav"])) for _, entry in entries(files[at])), np.uint64)
            for at in (train, score)
        )
        shared = np.flatnonzero(np.isin(other, one))
        if len(shared):
            _, entry = next(itertools.islice(entries(files[score]), int(shared[0]), None))
            said.append(
                f"{len(shared):,} clips of {files[score].name} are in {files[train].name}, too, such as {entry['wav']}:"
                " what is trained on the one is scored on what it has heard."
            )
    return said


def _fold(stem: str) -> str:
    number = FOLD.search(stem)
    return number[0].strip("fold_-") if number else ""


def _sound(wav: str) -> str:
    """The video that a clip is of, as far as its name tells, or its path."""
    video = YOUTUBE.fullmatch(stem_of(wav))
    return video[1] if video else wav


def _class_table(folder: Path) -> Path:
    for place in (folder, *folder.resolve().parents[:ABOVE]):
        found = sorted(place.glob(f"*{CLASSES}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise ShardError(f"{place} has several class tables, {', '.join(path.name for path in found)}: keep one.")
    raise ShardError(f"There is no *{CLASSES} in {folder} or above it; put that of this data set beside the JSON file.")


def entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 0, entry) of a data file, one by one: the file of all of AudioSet is 300 MB of text.

    Raises ShardError where it is not one.
    """
    decoder = json.JSONDecoder()
    text, at, number = "", 0, 0
    try:
        with open_text(path) as file:
            text = file.read(BLOCK)
            opening = text.find("[")
            if opening < 0 or '"data"' not in text[:opening]:
                raise ShardError(f'{path} does not begin with {{"data": [, as the data files of AST do.')
            at = opening + 1
            while True:
                while at < len(text) and text[at] in " \t\r\n,":
                    at += 1
                if at < len(text) and text[at] == "]":
                    return
                try:
                    entry, end = decoder.raw_decode(text, at)
                except ValueError as error:
                    more = file.read(BLOCK)
                    if not more:
                        raise ShardError(f"{path} is damaged or cut off after entry {number}: {error}.") from error
                    text, at = text[at:] + more, 0
                    continue
                if not isinstance(entry, dict) or not isinstance(entry.get("wav"), str):
                    raise ShardError(f"{path}, entry {number} has no `wav`.")
                yield number, entry | {"wav": slashed(entry["wav"])}
                number, at = number + 1, end
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path} cannot be read: {error}.") from error


@dataclass
class _Look:
    """What the first pass finds, in 24 bytes a clip."""

    path: np.ndarray  # uint64 [clips], hash of the path, ascending
    member: np.ndarray  # int64 [clips], a bit a file
    stems: Stems


def _look(files: list[Path]) -> _Look:
    path, labels, member = array("Q"), array("Q"), array("q")
    stems = Stems()
    for number, file in enumerate(files):
        for _, entry in entries(file):
            path.append(hash_of(entry["wav"]))
            labels.append(hash_of(str(entry.get("labels", ""))))
            member.append(1 << number)
    if not path:
        raise ShardError(f"{files[0]} lists no clips.")
    hashes, first, inverse = np.unique(np.frombuffer(path, np.uint64), return_index=True, return_inverse=True)
    differing = np.flatnonzero(np.frombuffer(labels, np.uint64)[first][inverse] != np.frombuffer(labels, np.uint64))
    if len(differing):
        wrong, at = int(differing[0]), 0
        for file in files:
            for _, entry in entries(file):
                if at == wrong:
                    raise ShardError(f"{file} gives {entry['wav']} different labels from those that it has elsewhere.")
                at += 1
    together = np.zeros(len(hashes), np.int64)
    np.bitwise_or.at(together, inverse, np.frombuffer(member, np.int64))
    once = np.zeros(len(path), bool)
    once[first] = True
    at = 0
    for file in files:
        for _, entry in entries(file):
            if once[at]:
                stems.add(entry["wav"])
            at += 1
    stems.close()
    return _Look(hashes, together, stems)


def _records(
    files: list[Path], numbers: dict[str, int], seen: _Look, columns: tuple[str, ...], ignored: Counter[str]
) -> Iterator[Record | Missing]:
    present = Folders()
    done = np.zeros(len(seen.path), bool)
    bases = [files[0].parent, *files[0].resolve().parents[1 : ABOVE + 1]]
    for number, file in enumerate(files):
        for at, entry in entries(file):
            wav, place = entry["wav"], int(np.searchsorted(seen.path, np.uint64(hash_of(entry["wav"]))))
            if done[place]:
                ignored["entries that repeat a clip"] += 1
                continue
            done[place] = True
            member = int(seen.member[place])
            values = {SPLIT: number} if columns == (SPLIT,) else {c: member >> n & 1 for n, c in enumerate(columns)}
            found = next((there for base in bases if (there := present.find(base / wav))), None)
            if found is None:
                yield Missing(seen.stems.key(wav), wav, values.get(SPLIT))
                continue
            mids = [mid.strip() for mid in str(entry.get("labels", "")).split(",") if mid.strip()]
            if unknown := [mid for mid in mids if mid not in numbers]:
                raise ShardError(f"{file}, entry {at}: the label {unknown[0]} of {wav} is not in the class table.")
            yield Record(
                key=seen.stems.key(wav),
                path=found,
                labels=tuple(dict.fromkeys(numbers[mid] for mid in mids)),
                columns=values,
                provenance={"file": wav} | {k: v for k, v in entry.items() if k == "video_id" and isinstance(v, str)},
            )
