"""Clips of several shard sets, by the rows of their joined index."""

from __future__ import annotations

import numpy as np

from gamut.data.reader import Reader
from gamut.shards import Index
from gamut.shards.joined import Joined


class Readers:
    """A `Reader` for each set of a mixture; messages name the set that a clip is in."""

    def __init__(self, index: Joined) -> None:
        self.index: Index = index
        self._joined = index
        self._readers = [open_reader(part) for part in index.parts]

    def read(self, row: int) -> bytes:
        """As `Reader.read`."""
        part, own = self._joined.place(row)
        return self._readers[part].read(own)

    def decode(self, row: int) -> np.ndarray:
        """As `Reader.decode`."""
        part, own = self._joined.place(row)
        return self._readers[part].decode(own)

    def close(self) -> None:
        """Close every open shard."""
        for reader in self._readers:
            reader.close()


def open_reader(index: Index) -> Reader | Readers:
    """What reads the clips of an index, be it of one set or of several."""
    return Readers(index) if isinstance(index, Joined) else Reader(index)
