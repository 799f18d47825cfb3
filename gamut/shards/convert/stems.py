"""Keys from paths that come one by one, without holding them: a first pass says which file names are not unique."""

from __future__ import annotations

import os
from array import array

import numpy as np
import xxhash

from gamut.shards.convert.source import key_of


def hash_of(text: str) -> int:
    """64 bits of it."""
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogateescape"))


def stem_of(path: str) -> str:
    """The name of a file without folders and ending."""
    return os.path.splitext(os.path.basename(path))[0]


class Stems:
    """8 bytes a path between the passes.

    >>> stems = Stems()
    >>> for path in ("a/x.wav", "b/x.wav", "a/y.wav"): stems.add(path)
    >>> stems.close()
    >>> stems.key("a/y.wav"), stems.key("b/x.wav")
    ('y', 'x-ccc4aacc')
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._shared: set[int] = set()

    def add(self, path: str) -> None:
        """Of the first pass: once for each different path."""
        self._hashes.append(hash_of(key_of(stem_of(path))))

    def close(self) -> None:
        """The first pass is over."""
        hashes = np.sort(np.frombuffer(self._hashes, np.uint64)) if self._hashes else np.zeros(0, np.uint64)
        self._shared = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        self._hashes = array("Q")

    def key(self, path: str) -> str:
        """The file's name, and, where another path has the same, 8 hexadecimal digits of the path's hash."""
        key = key_of(stem_of(path))
        return f"{key}-{hash_of(path):016x}"[: len(key) + 9] if hash_of(key) in self._shared else key
