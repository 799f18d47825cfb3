"""Several shard sets seen as one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gamut.errors import ShardError
from gamut.plan import Clips
from gamut.remote import Remote
from gamut.shards.build import COLUMN, FORMAT
from gamut.shards.index import DTYPES, Index


class Joined(Index):
    """The sets of a mixture, one after the other: rows, shards and columns are concatenated (in memory, about 60 bytes
    a clip), class tables are joined by name, in order of first appearance.

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
                    "told aone. Give each set once, or convert one of them again with another --name."
                )
            named[one.name] = one.folder
        labels = list(dict.fromkeys(name for one in sets for name in one.labels))
        columns = [column for column in sets[0].columns if all(column in one.columns for one in sets)]
        shared = [name for name in DTYPES if name not in ("shard", "label", "label_offset", "key", "key_offset")]
        shards = np.cumsum([0, *(len(one.shards) for one in sets)])
        arrays = {name: np.concatenate([getattr(one, name) for one in sets]) for name in shared}
        arrays["shard"] = np.concatenate([one.shard + shift for one, shift in zip(sets, shards)]).astype(np.int32)
        arrays["label"] = np.concatenate([_renamed(one, one.label, labels) for one in sets])
        arrays["label_offset"] = _offsets([one.label_offset for one in sets])
        arrays["key"] = np.concatenate([one._key for one in sets])
        arrays["key_offset"] = _offsets([one._key_offset for one in sets])
        if any(one.event_offset is not None for one in sets):
            none = [np.zeros(len(one) + 1, np.int64) for one in sets]
            offsets = [zeros if one.event_offset is None else one.event_offset for one, zeros in zip(sets, none)]
            arrays["event_offset"] = _offsets(offsets)
            arrays["event"] = np.concatenate([_renamed(one, one.event, labels) for one in sets])
            arrays |= {
                name: np.concatenate([getattr(one, name) for one in sets]) for name in ("event_onset", "event_end")
            }
        arrays |= {COLUMN + name: np.concatenate([one.columns[name] for one in sets]) for name in columns}
        content: dict[str, Any] = {
            "format": FORMAT,
            "name": "+".join(named),
            "labels": labels,
            "columns": columns,
            "shards": [shard for one in sets for shard in one.shards],
            "fingerprint": xxhash.xxh3_128_hexdigest("".join(one.fingerprint for one in sets).encode()),
            "arrays": {},
        }
        super().__init__(Path(" and ".join(str(one.folder) for one in sets)), content, arrays, sets[0].tars.remote)
        self._sets = tuple(sets)
        self.first = np.cumsum([0, *(len(one) for one in sets)])
        self._first_shard = shards

    @property
    def sets(self) -> tuple[Index, ...]:
        return self._sets

    def __reduce__(self) -> tuple:
        return open_sets, ([part.folder for part in self.sets], self.sets[0].tars.remote)

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
        length = [float(np.sum(part.samples)) for part in self.sets]
        mean = sum(n * one[0] for n, one in zip(length, found) if one) / sum(length)
        square = sum(n * (one[0] ** 2 + one[1] ** 2) for n, one in zip(length, found) if one) / sum(length)
        return mean, math.sqrt(square - mean**2)


def open_sets(folders: Sequence[str | Path], remote: Remote | None = None) -> Index:
    """The index of one shard set, or of several as one; `remote` says how to read those that are remote.

    Raises ShardError as `Index.open`, and where two sets have the same name.
    """
    sets = [Index.open(folder, remote=remote) for folder in folders]
    return sets[0] if len(sets) == 1 else Joined(sets)


def _renamed(part: Index, label: np.ndarray, labels: list[str]) -> np.ndarray:
    """int32: class ids of a part as ids of the joined table."""
    ids = {name: number for number, name in enumerate(labels)}
    table = np.array([ids[name] for name in part.labels], np.int32)
    return table[label] if len(table) else np.zeros(0, np.int32)


def _offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
    """Offsets of ragged columns, concatenated."""
    starts = itertools.accumulate([0, *(int(offset[-1]) for offset in offsets[:-1])])
    shifted = [offset[:-1] + start for offset, start in zip(offsets, starts)]
    return np.append(np.concatenate(shifted), sum(int(offset[-1]) for offset in offsets)).astype(np.int64)
