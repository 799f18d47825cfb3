"""Several shard sets seen as one."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gamut.errors import ShardError
from gamut.plan import Clips
from gamut.remote import Remote
from gamut.shards.columns import EVENTS
from gamut.shards.generations import read_generations
from gamut.shards.index import Index
from gamut.shards.shard_table import ShardSums, ShardTable
from gamut.shards.tars import Tars

COLUMNS = ("clip_id", "shard", "offset", "size", "samples", "checksum", "_key", "_key_offset", "label", "label_offset")
MOST = 1_000_000  # combinations of generations that are tried
EVENT = ("event", "event_offset", "event_onset", "event_end")


class Joined(Index):
    """The sets of a mixture, one after the other: rows, shards and columns are concatenated, each when it is first
    asked for (in memory, 8 bytes a clip and column), class tables are joined by name, in order of first appearance.

    `sets[k]` is set k; its rows begin at `first[k]`. `labels` maps no id of a set: `label` holds the joined ids.
    Columns are those that every set has.

    >>> index = open_sets(["shards/audioset-2m", "shards/vggsound"])      # doctest: +SKIP
    """

    first: np.ndarray  # int64 [sets + 1], where each set's rows begin

    def __init__(self, sets: Sequence[Index]) -> None:
        named: dict[str, Path] = {}
        for one in sets:
            if one.name in named:
                raise ShardError(
                    f"{named[one.name]} and {one.folder} are both named {one.name!r}, so their clips could not be "
                    "told apart. Give each set once, or convert one of them again with another --name."
                )
            named[one.name] = one.folder
        self._sets = tuple(sets)
        self.folder = Path(" and ".join(str(one.folder) for one in sets))
        self.name, self.generation, self.names, self.pages = "+".join(named), 0, {}, ()
        self.has_grown = any(one.has_grown for one in sets)
        self.by_ranges = any(one.by_ranges for one in sets)
        self.labels = tuple(dict.fromkeys(name for one in sets for name in one.labels))
        self.fingerprint = _together([one.fingerprint for one in sets])
        tables = [one.shard_table for one in sets]
        self.shard_table = ShardTable(
            tuple(name for table in tables for name in table.name),
            *(np.concatenate([getattr(table, of) for table in tables]) for of in ("size", "clips", "checksum")),
        )
        self.tars = Tars(str(self.folder), self.shard_table.name, sets[0].tars.remote)
        self.codecs, self.codec = (), None
        own = [column for column in sets[0].columns if all(column in one.columns for one in sets)]
        self.columns = _Lazy(own, lambda name: np.concatenate([one.columns[name] for one in sets]))
        self.first = np.cumsum([0, *(len(one) for one in sets)])
        self._first_shard = np.cumsum([0, *(len(one.shards) for one in sets)])

    def require_sound(self) -> None:
        for one in self.sets:
            one.require_sound()

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getattr__(self, name: str) -> Any:
        """A column, joined now and kept."""
        if name not in (*COLUMNS, *EVENT):
            raise AttributeError(name)
        value = self._joined_events(name) if name in EVENT else self._joined(name)
        setattr(self, name, value)
        return value

    def _joined(self, name: str) -> np.ndarray:
        if name == "shard":
            return np.concatenate([one.shard + by for one, by in zip(self.sets, self._first_shard)]).astype(np.int32)
        if name in ("label_offset", "_key_offset"):
            return _offsets([getattr(one, name) for one in self.sets])
        if name == "label":
            return np.concatenate([self._renamed(one, one.label) for one in self.sets])
        return np.concatenate([getattr(one, name) for one in self.sets])

    def _joined_events(self, name: str) -> np.ndarray | None:
        timed = any(one.event_offset is not None for one in self.sets)
        if name == "event_offset":
            none = [np.zeros(len(one) + 1, np.int64) for one in self.sets]
            offsets = [zeros if one.event_offset is None else one.event_offset for one, zeros in zip(self.sets, none)]
            return _offsets(offsets) if timed else None
        if not timed:
            return np.zeros(0, EVENTS[name])
        if name == "event":
            return np.concatenate([self._renamed(one, one.event) for one in self.sets])
        return np.concatenate([getattr(one, name) for one in self.sets])

    def _renamed(self, part: Index, label: np.ndarray) -> np.ndarray:
        """int32: class ids of a part as ids of the joined table."""
        ids = {name: number for number, name in enumerate(self.labels)}
        table = np.array([ids[name] for name in part.labels], np.int32)
        return table[label] if len(table) else np.zeros(0, np.int32)

    @functools.cached_property
    def sums(self) -> ShardSums:
        """Sums over each shard of all sets, the classes as in the joined table."""
        of = [one.sums for one in self.sets]
        return ShardSums(
            self.shard_table.clips,
            np.concatenate([one.samples for one in of]),
            self.shard_table.first[:-1],
            _offsets([one.label_offset for one in of]),
            np.concatenate([self._renamed(part, one.label) for part, one in zip(self.sets, of)]),
            np.concatenate([one.label_count for one in of]),
        )

    def key(self, row: int) -> str:
        part, own = self.place(row)
        return self.sets[part].key(own)

    def keys_by(self, rows: int) -> Iterator[list[str]]:
        for one in self.sets:
            yield from one.keys_by(rows)

    def label_ids(self, row: int) -> np.ndarray:
        part, own = self.place(row)
        return self._renamed(self.sets[part], self.sets[part].label_ids(own))

    @property
    def sets(self) -> tuple[Index, ...]:
        return self._sets

    def __reduce__(self) -> tuple:
        return Joined, (self.sets,)

    def place(self, row: int) -> tuple[int, int]:
        """(which set, its row there)."""
        part = int(np.searchsorted(self.first, row, side="right")) - 1
        return part, row - int(self.first[part])

    def shard_path(self, shard: int) -> Path:
        part = int(np.searchsorted(self._first_shard, shard, side="right")) - 1
        return self.sets[part].shard_path(shard - int(self._first_shard[part]))

    def table(self) -> Clips:
        table = super().table()
        source = np.repeat(np.arange(len(self.sets), dtype=np.int32), np.diff(self.first))
        return Clips(table.row, table.clip_id, table.shard, table.samples, table.size, source=source)

    def where(self, subset: Mapping[str, Sequence[Any]]) -> np.ndarray:
        return np.concatenate([part.where(subset) + begin for part, begin in zip(self.sets, self.first)])

    def statistics(self) -> tuple[float, float] | None:
        """Mean and standard deviation over all sets, each weighted by its length; None where one of them has none."""
        found = [part.statistics() for part in self.sets]
        if any(one is None for one in found):
            return None
        length = [float(np.sum(np.asarray(part.samples))) for part in self.sets]
        mean = sum(n * one[0] for n, one in zip(length, found) if one) / sum(length)
        square = sum(n * (one[0] ** 2 + one[1] ** 2) for n, one in zip(length, found) if one) / sum(length)
        return mean, math.sqrt(square - mean**2)


def open_sets(
    folders: Sequence[str | Path], remote: Remote | None = None, began: str = "", later: bool = False
) -> Index:
    """The index of one shard set, or of several as one; `remote` says how to read those that are remote, and `later` is
    of `Index.open`.

    began: the fingerprint of such an index that a run began with: where `add` has appended to the sets since, their
    generations of then are opened, if they have them. Raises ShardError as `Index.open`, and where two sets have the
    same name.
    """
    then = _generations_of(folders, began) if began else [""] * len(folders)
    sets = [Index.open(folder, remote=remote, generation=one, later=later) for folder, one in zip(folders, then)]
    return sets[0] if len(sets) == 1 else Joined(sets)


def _generations_of(folders: Sequence[str | Path], began: str) -> Sequence[str]:
    """The fingerprint of each set's generation, which together have this one; the newest ("") where none have."""
    each = [[one.fingerprint for one in reversed(read_generations(Path(folder))[1])] for folder in folders]
    for some in itertools.islice(itertools.product(*each), MOST):
        if _together(some) == began:
            return some
    return [""] * len(folders)


def _together(fingerprints: Sequence[str]) -> str:
    """The fingerprint of sets as one."""
    return fingerprints[0] if len(fingerprints) == 1 else xxhash.xxh3_128_hexdigest("".join(fingerprints).encode())


class _Lazy(Mapping[str, np.ndarray]):
    """Columns by name, each made when it is first asked for."""

    def __init__(self, names: Sequence[str], make: Callable[[str], np.ndarray]) -> None:
        self._names, self._make = names, make
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
    """Offsets of ragged columns, concatenated."""
    starts = itertools.accumulate([0, *(int(offset[-1]) for offset in offsets[:-1])])
    shifted = [offset[:-1] + start for offset, start in zip(offsets, starts)]
    return np.append(np.concatenate(shifted), sum(int(offset[-1]) for offset in offsets)).astype(np.int64)
