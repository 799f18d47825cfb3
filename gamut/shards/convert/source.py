"""What a converter needs to know of a data set: a list of records, made without reading any audio."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import xxhash


@dataclass(frozen=True)
class Record:
    """One clip to be: where its audio is and what is known of it. A subclass may read its bytes from elsewhere."""

    key: str  # unique in the set; becomes the name of the tar members (see `key_of`)
    path: Path
    labels: tuple[int, ...]  # class ids, positions in the listing's class table
    text: str = ""
    columns: Mapping[str, int] = field(default_factory=dict)  # one value for each of the listing's columns
    provenance: Mapping[str, str] = field(default_factory=dict)  # goes into KEY.json as it is

    def read(self) -> bytes:
        """The file as it lies there. Raises OSError."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class Listing:
    """All that a source has to say before audio is read."""

    name: str  # of the set: part of every clip id
    labels: tuple[str, ...]  # the class table
    columns: tuple[str, ...]
    records: Sequence[Record]
    ignored: Mapping[str, int] = field(default_factory=dict)  # why -> how many files were passed over

    def renamed(self, name: str) -> Listing:
        """The same under another name."""
        return replace(self, name=name)


class Source(Protocol):
    """One layout of a data set on disk."""

    name: str  # what is typed after `convert`
    layout: str  # what SRC looks like, in a few words

    def list(self, folder: Path) -> Listing:
        """The records under `folder`. Raises ShardError where it is not of this layout, saying what was missing."""
        ...


def key_of(path: str) -> str:
    """A tar key from a relative path without its suffix: letters, digits, `-`, `_`, and `/` between folders.

    WebDataset ends a key at the first dot of the last part and skips names that begin with two underscores, so
    neither may occur.

    >>> key_of("dog/__b.1 (2)")
    'dog/-b_1__2_'
    """
    return re.sub(r"(^|/)_+", r"\1-", re.sub(r"[^\w/-]", "_", path))


def unique_keys(paths: Sequence[str]) -> list[str]:
    """Keys for relative paths, each with its suffix; a path whose key another one shares gets 8 hex digits of its hash.

    >>> unique_keys(["a/x.wav", "a/y.wav", "a/y.mp3"])
    ['a/x', 'a/y-86ddf96f', 'a/y-9121ccea']
    """
    keys = [key_of(path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path) for path in paths]
    count = Counter(keys)
    return [
        key if count[key] == 1 else f"{key}-{xxhash.xxh3_64_hexdigest(path.encode(errors='surrogateescape'))[:8]}"
        for key, path in zip(keys, paths)
    ]


def in_shard_order(records: Sequence[Record]) -> list[Record]:
    """Sorted by the hash of the key: the same for any order of listing, and every shard a fair sample of the set.

    A folder a class, converted in its own order, would make shards of one class each, which no shuffle window mends.
    """
    return sorted(records, key=lambda record: (xxhash.xxh3_64_intdigest(record.key.encode()), record.key))


def clips_a_shard(clips: int) -> int:
    """The default size of a shard: 64 shards, but not under 50 nor over 1,000 clips in each."""
    return min(1000, max(50, -(-clips // 64)))


def duplicates(records: Sequence[Record]) -> dict[str, list[Path]]:
    """Keys that more than one record has, with their files."""
    files: dict[str, list[Path]] = defaultdict(list)
    for record in records:
        files[record.key].append(record.path)
    return {key: paths for key, paths in files.items() if len(paths) > 1}
