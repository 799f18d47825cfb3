"""What a converter needs to know about a data set: its records, listed without reading any audio."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import xxhash

from gamut.audio.segment import Segment
from gamut.errors import ShardError
from gamut.shards.build import Names

SPLIT = "split"  # the column whose values have shards of their own


class Event(NamedTuple):
    """A strong label: something heard in a clip from `onset` to `offset`, in seconds of the clip."""

    onset: float
    offset: float
    label: int  # class id
    line: int = 0  # of the table that it comes from, to be named where the clip turns out to be shorter; 0: none


@dataclass(frozen=True, slots=True)
class Record:
    """A clip to write: where its audio is and what is known about it."""

    key: str  # unique in the set; becomes the name of the tar members (see `key_of`)
    path: Path | str
    labels: tuple[int, ...]  # class ids, positions in the listing's class table; none, one or several
    text: str = ""
    columns: Mapping[str, int] = field(default_factory=dict)  # one value for each of the listing's columns
    provenance: Mapping[str, str | float] = field(default_factory=dict)  # goes into KEY.json as it is
    segment: Segment | None = None  # None: the whole file
    events: tuple[Event, ...] = ()  # by time, of classes among `labels`; none: when a label is heard is not known
    group: str = ""  # clips of one (a recording, a speaker) go into one fold, where a set gets folds; empty: none


@dataclass(frozen=True, slots=True)
class Missing:
    """A clip that the data set's own tables list, but whose file is missing."""

    clip: str
    file: str  # where it was looked for
    split: int | None = None


@dataclass(frozen=True)
class Listing:
    """Everything that a source knows before audio is read.

    `records` may be an iterator, which is used once, so that a list of two million clips is never held. `ignored` is
    complete once that is exhausted.
    """

    name: str  # of the set: part of every clip id
    labels: tuple[str, ...]  # the class table
    columns: tuple[str, ...]
    records: Iterable[Record | Missing]
    ignored: Mapping[str, int] = field(default_factory=dict)  # why -> files or rows passed over; see `passed_over`
    names: Names = field(default_factory=dict)  # of values in the columns, for `subset: {split: [train]}`

    said: Sequence[str] = ()  # what whoever converts should know, in sentences

    def passed_over(self) -> dict[str, int]:
        """Why -> how many files or rows were passed over, once the records have been iterated over."""
        return {why: count for why, count in self.ignored.items() if count}

    def renamed(self, name: str) -> Listing:
        """The same listing under another name."""
        return replace(self, name=name)

    def only(self, splits: Sequence[str]) -> Listing:
        """Only the clips of these splits. Raises ShardError for a split that the set does not have."""
        known = self.names.get(SPLIT, {})
        for split in splits:
            if split not in known:
                there = f"it has {', '.join(known)}" if known else "it has no splits"
                raise ShardError(f"{self.name} has no split {split}; {there}.")
        values = {value for split in splits for value in known[split]}

        def chosen() -> Iterator[Record | Missing]:
            for one in self.records:
                if (one.split if isinstance(one, Missing) else one.columns[SPLIT]) in values:
                    yield one

        return replace(self, records=chosen())


class Source(ABC):
    """One layout of a data set on disk, registered under the name that is typed after `convert`."""

    expects: ClassVar[str]  # what SRC looks like, in a few words
    of_file: ClassVar[bool] = False  # whether SRC may also be a file
    splits: ClassVar[bool] = False  # whether columns of other names than `split` and `fold` say what is trained on

    @abstractmethod
    def list(self, folder: Path) -> Listing:
        """The records under `folder`. Raises ShardError where it does not have this layout, saying what is missing."""


def key_of(path: str) -> str:
    """A tar key from a relative path without its suffix: letters, digits, `-`, `_`, and `/` between folders.

    WebDataset ends a key at the first dot of the last part and skips names that begin with two underscores, so
    neither may occur; nor may a key begin or end with `/`: some programs that unpack a tar take the first for
    the root.

    >>> key_of("dog/__b.1 (2)")
    'dog/-b_1__2_'
    """
    inside = re.sub(r"/+", "/", path).strip("/") or "-"
    return re.sub(r"(^|/)_+", r"\1-", re.sub(r"[^\w/-]", "_", inside))


def unique_keys(paths: Sequence[str]) -> list[str]:
    """Keys for relative paths, given with suffix; paths that would share a key get 8 hex digits of their hash added.

    >>> unique_keys(["a/x.wav", "a/y.wav", "a/y.mp3"])
    ['a/x', 'a/y-86ddf96f', 'a/y-9121ccea']
    """
    keys = [key_of(path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path) for path in paths]
    count = Counter(keys)
    return [
        key if count[key] == 1 else f"{key}-{xxhash.xxh3_64_hexdigest(path.encode(errors='surrogateescape'))[:8]}"
        for key, path in zip(keys, paths)
    ]


def hash_of(text: str) -> int:
    """64 bits (xxh3) of a text."""
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogateescape"))


def slashed(path: str) -> str:
    """A path of a list as it is written here: lists made on Windows have backslashes.

    >>> slashed("yes\\\\0_nohash_0.wav")
    'yes/0_nohash_0.wav'
    """
    return path.replace("\\", "/")


def stem_of(path: str) -> str:
    """The name of a file without folders and ending."""
    return os.path.splitext(os.path.basename(path))[0]


class Stems:
    """Keys of paths that are given one by one, in two passes, with 8 bytes a path: the first finds shared names.

    >>> stems = Stems()
    >>> for path in ("a/x.wav", "b/x.wav", "a/y.wav"): stems.add(path)
    >>> stems.close()
    >>> stems.key("a/y.wav"), stems.key("b/x.wav")
    ('y', 'x-c62bed7f')
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._shared: set[int] = set()

    def add(self, path: str) -> None:
        """In the first pass: call it once for each different path."""
        self._hashes.append(hash_of(key_of(stem_of(path))))

    def close(self) -> None:
        """The first pass is over."""
        hashes = np.sort(np.frombuffer(self._hashes, np.uint64)) if self._hashes else np.zeros(0, np.uint64)
        self._shared = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        self._hashes = array("Q")

    def key(self, path: str) -> str:
        """The file's name, followed by 8 hex digits of the path's hash where another path has the same name."""
        key = key_of(stem_of(path))
        return f"{key}-{hash_of(path):016x}"[: len(key) + 9] if hash_of(key) in self._shared else key


def shard_order(key: str) -> int:
    """What clips are sorted by: independent of the order of listing, and each shard is a fair sample of its split.

    One folder for each class, converted in that order, would make shards of one class, which no shuffle window repairs.
    """
    return hash_of(key)


def clips_a_shard(clips: int) -> int:
    """The default size of a shard: 64 shards, but at least 50 and at most 1,000 clips in each."""
    return min(1000, max(50, -(-clips // 64)))
