"""What one tar holds, read from the tar itself: the unit that an index is built of."""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Mapping, MutableSequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from gamut.errors import ShardError
from gamut.numbers import RATE
from gamut.shards.tar import members

MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and ending, as WebDataset splits a name
LARGEST_JSON = 16 << 20  # bytes
MERGED = "events that overlap or touch another of their class, which became one with it"
LATE = 0.1  # seconds by which tables round an event's end past that of its clip


@dataclass
class Part:
    """The clips of one shard, in the order of the tar; each list has one entry a clip."""

    shard: str  # file name of the tar
    size: int  # bytes of the tar
    checksum: int  # xxh3_64 of the tar
    name: str = ""  # of the set
    label_names: dict[int, str] = field(default_factory=dict)
    key: list[str] = field(default_factory=list)
    offset: MutableSequence[int] = field(default_factory=list)  # of the audio inside the tar, bytes
    bytes: MutableSequence[int] = field(default_factory=list)  # of the audio
    samples: MutableSequence[int] = field(default_factory=list)  # at 16 kHz
    clip_checksum: MutableSequence[int] = field(default_factory=list)  # xxh3_64 of the audio's bytes
    labels: list[list[int]] = field(default_factory=list)
    columns: dict[str, MutableSequence[int]] = field(default_factory=dict)
    events: list[list[list[int]]] = field(default_factory=list)  # of each clip, as `Index.events`; empty: of none
    codec: list[str] = field(default_factory=list)  # of the audio; empty for our own shards, which hold FLAC

    def dump(self) -> dict:
        """As JSON knows it."""
        return asdict(self)

    @classmethod
    def parse(cls, content: dict) -> Part:
        """The inverse of `dump` after a round trip through JSON. Raises TypeError, ValueError, KeyError.

        Numbers take 8 bytes each instead of Python's 40, since the parts of two million clips are held at once.
        """
        part = cls(**content)
        part.label_names = {int(label): name for label, name in part.label_names.items()}
        try:
            part.offset, part.bytes = array("q", part.offset), array("q", part.bytes)
            part.samples, part.clip_checksum = array("q", part.samples), array("Q", part.clip_checksum)
            part.columns = {column: array("q", values) for column, values in part.columns.items()}
        except OverflowError as error:
            raise ValueError(f"a number in the part of {part.shard} is too large") from error
        return part


def checksum_of(file: BinaryIO) -> int:
    """xxh3_64 of a whole file."""
    file.seek(0)
    return hashlib.file_digest(file, xxhash.xxh3_64).intdigest()  # type: ignore[arg-type,attr-defined]


def hexadecimal(checksum: int) -> str:
    """A 64-bit checksum as text: 16 digits."""
    return f"{checksum:016x}"


def scan(file: BinaryIO, path: Path) -> Part:
    """Read a tar from front to back. `path` is its final name, for messages and for the part.

    The tar must be whole (see `members`), every clip must have its KEY.flac and KEY.json, and the audio the checksum
    that KEY.json holds. Raises ShardError otherwise.
    """
    size = file.seek(0, os.SEEK_END)
    part = Part(path.name, size, checksum_of(file))
    audio: dict[str, tuple[int, int]] = {}
    described: set[str] = set()
    for name, offset, length in members(file, path):
        match = MEMBER.match(name)
        if match is None:
            continue  # WebDataset skips it too
        key, ending = match.groups()
        if ending == "flac":
            if key in audio:
                raise ShardError(f"{path} holds two clips with the key {key}.")
            audio[key] = (offset, length)
        elif ending == "json" and key in audio:
            _add_clip(part, path, key, *audio[key], _description(file, path, name, offset, length), file)
            described.add(key)
    if bare := audio.keys() - described:
        raise ShardError(f"{path} holds {min(bare)}.flac without the {min(bare)}.json that `convert` writes after it.")
    return part


def within(onset: float, offset: float, samples: int) -> tuple[int, int]:
    """(first sample, the sample after the last) at 16 kHz of an event, given in seconds, of a clip of so many samples.

    An offset of up to LATE after the clip's end is rounded to it. Raises ValueError where the event is not in the clip.
    """
    first, end = round(onset * RATE), round(offset * RATE)
    if not 0 <= first < min(end, samples) or end > samples + LATE * RATE:
        raise ValueError(f"from {onset:g} to {offset:g} s is not within a clip of {samples / RATE:.2f} s")
    return first, min(end, samples)


def merge(events: Iterable[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], int]:
    """(events, (onset, offset, class, ...) each, by time, those of one class that overlap or touch as one; how many
    fewer they are).

    >>> merge([(1.0, 3.0, "dog"), (0.0, 1.5, "dog"), (1.0, 2.0, "bell")])
    ([(0.0, 3.0, 'dog'), (1.0, 2.0, 'bell')], 1)
    """
    whole: list[tuple[Any, ...]] = []
    last: dict[Any, int] = {}  # class -> place in `whole` of its latest event
    fewer = 0
    for event in sorted(events):
        onset, offset, label, *more = event
        at = last.get(label)
        if at is not None and onset <= whole[at][1]:
            whole[at] = (whole[at][0], max(whole[at][1], offset), *whole[at][2:])
            fewer += 1
            continue
        last[label] = len(whole)
        whole.append((onset, offset, label, *more))
    return sorted(whole), fewer


def _events(about: dict, ids: Mapping[str, int], samples: int) -> list[list[int]]:
    """[first sample, end, class id] of each of the `events`, [onset, offset, class], of a KEY.json; by time."""
    events = ((*within(float(onset), float(offset), samples), ids[name]) for onset, offset, name in about["events"])
    return sorted(map(list, events))


def _description(file: BinaryIO, path: Path, name: str, offset: int, length: int) -> dict:
    if length > LARGEST_JSON:
        raise ShardError(f"{name} in {path} has {length} bytes, too many to describe a clip.")
    file.seek(offset)
    try:
        content = json.loads(file.read(length))
    except ValueError as error:
        raise ShardError(f"{name} in {path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ShardError(f"{name} in {path} is not a JSON object.")
    return content


def _add_clip(part: Part, path: Path, key: str, offset: int, length: int, about: dict, file: BinaryIO) -> None:
    file.seek(offset)
    checksum = xxhash.xxh3_64_intdigest(file.read(length))
    try:
        if about["xxh3"] != hexadecimal(checksum):
            raise ShardError(f"The audio of {key} in {path} is damaged: it does not have the checksum in {key}.json.")
        part.name = part.name or about["set"]
        if part.name != about["set"]:
            raise ShardError(f"{path} holds clips of two sets, {part.name} and {about['set']}.")
        part.label_names.update(zip(about["label_ids"], about["labels"], strict=True))
        part.samples.append(int(about["samples"]))
        part.labels.append([int(label) for label in about["label_ids"]])
        ids = dict(zip(about["labels"], part.labels[-1], strict=True))
        part.events.append(_events({"events": ()} | about, ids, part.samples[-1]))
        if not part.key:
            part.columns = {column: [] for column in about["columns"]}
        for column, values in part.columns.items():
            values.append(int(about["columns"][column]))
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{key}.json in {path} was not written by `python -m gamut.shards convert` ({error!r})."
        ) from error
    part.key.append(key)
    part.offset.append(offset)
    part.bytes.append(length)
    part.clip_checksum.append(checksum)
