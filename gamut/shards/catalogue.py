"""The catalogue of a large set, from its index: columns stay where they are mapped, a subset is two bits a clip."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gamut.plan import Catalogue, Clips
from gamut.shards.index import Index
from gamut.shards.paged import Paged

AT_ONCE = 1 << 22  # clips of a pass
READ = ("clip_id", "samples", "size", "label_offset", "label")  # columns of a set that plans read
WORD = 64


class Chosen:
    """Some rows of n, in two bits each: which they are, and how many come before each word."""

    def __init__(self, words: np.ndarray) -> None:
        """words: uint64 [ceil(n / 64)], the lowest bit of each first."""
        self.words = words
        self.before = np.concatenate([[0], np.cumsum(np.bitwise_count(words), dtype=np.int64)])

    @classmethod
    def of(cls, masks: Iterator[np.ndarray], n: int) -> Chosen:
        """From bool arrays that follow each other, n entries in all."""
        bits = np.zeros(-(-n // WORD) * WORD // 8, np.uint8)
        at, rest = 0, np.zeros(0, bool)
        for mask in masks:
            rest = np.concatenate([rest, mask])
            whole = len(rest) // 8 * 8
            packed = np.packbits(rest[:whole], bitorder="little")
            bits[at : at + len(packed)] = packed
            at, rest = at + len(packed), rest[whole:]
        packed = np.packbits(rest, bitorder="little")
        bits[at : at + len(packed)] = packed
        return cls(bits.view("<u8").astype(np.uint64, copy=False))

    @classmethod
    def among(cls, rows: np.ndarray, n: int) -> Chosen:
        """From int64 [k], ascending, of n."""

        def masks() -> Iterator[np.ndarray]:
            for first in range(0, n, AT_ONCE):
                last = min(first + AT_ONCE, n)
                mask = np.zeros(last - first, bool)
                mask[rows[slice(*np.searchsorted(rows, [first, last]))] - first] = True
                yield mask

        return cls.of(masks(), n)

    def __len__(self) -> int:
        return int(self.before[-1])

    def rows(self, places: np.ndarray) -> np.ndarray:
        """int64 [k]: the rows at these places among the chosen ones."""
        found = np.empty(len(places), np.int64)
        for first in range(0, len(places), 1 << 18):
            some = np.asarray(places[first : first + (1 << 18)])
            at = np.searchsorted(self.before, some, side="right") - 1
            found[first : first + len(some)] = at * WORD + _nth_bit(self.words[at], some - self.before[at])
        return found

    def up_to(self, rows: np.ndarray) -> np.ndarray:
        """int64 [k]: how many of the chosen rows come before each of these (0 to n)."""
        word, bit = np.divmod(np.asarray(rows, np.int64), WORD)
        below = (np.uint64(1) << bit.astype(np.uint64)) - np.uint64(1)
        words = np.append(self.words, np.uint64(0))[word]
        return self.before[word] + np.bitwise_count(words & below)

    def mask(self, first: int, last: int) -> np.ndarray:
        """bool [last - first]: which of these rows are chosen."""
        words = self.words[first // WORD : -(-last // WORD)]
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
        return bits[first % WORD : first % WORD + last - first].astype(bool)


def _nth_bit(word: np.ndarray, n: np.ndarray) -> np.ndarray:
    """int64 [k]: the place of the bit that is set with n set bits below it, in each uint64: halved six times."""
    word, n, place = word.copy(), n.astype(np.int64), np.zeros(len(word), np.int64)
    for width in (32, 16, 8, 4, 2, 1):
        low = np.bitwise_count(word & np.uint64((1 << width) - 1)).astype(np.int64)
        above = n >= low
        n -= np.where(above, low, 0)
        place += np.where(above, width, 0)
        word = np.where(above, word >> np.uint64(width), word)
    return place


class Stretch(NamedTuple):
    """Rows [first, last) of an index that are of one set: which set, and where they are in it."""

    part: int
    first: int
    last: int
    begin: int  # the set's first row

    @property
    def own(self) -> slice:
        return slice(self.first - self.begin, self.last - self.begin)


class Indexed(Catalogue):
    """The clips of a large set that a recipe selects, all or those `chosen`.

    Weights are a number a class, of which a clip has the sum over its labels, or a number a clip (`weight`, by place).
    """

    def __init__(
        self,
        columns: Sequence[Mapping[str, np.ndarray]],
        rows: np.ndarray,
        source: np.ndarray | None,
        told: str,
        chosen: Chosen | None = None,
        of_class: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        mass: np.ndarray | None = None,
    ) -> None:
        """columns: of each set; rows: int64 [S + 1], where each shard's begin; told: what tells the sets from others;
        of_class: float64 [sets, classes]."""
        self.columns = columns
        self.shard_rows, self.source, self.told = rows, source, told
        self.chosen, self.of_class, self.weight = chosen, of_class, weight
        self.first = rows if chosen is None else chosen.up_to(rows)
        self.begins = np.cumsum([0, *(len(one["clip_id"]) for one in columns)])
        self.mass = self._sum_weights() if mass is None and (of_class is not None or weight is not None) else mass

    @classmethod
    def of(
        cls,
        index: Index,
        chosen: Chosen | None = None,
        of_class: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        mass: np.ndarray | None = None,
    ) -> Indexed:
        """All rows of an index, or those chosen. of_class: float64 [classes] of the index; mass: if it is known."""
        columns = [{name: getattr(one, name) for name in READ} for one in index.sets]
        rows = index.shard_table.first
        parts = np.repeat(np.arange(len(index.sets), dtype=np.int32), [len(one.shard_table) for one in index.sets])
        each = None
        if of_class is not None:
            ids = {name: number for number, name in enumerate(index.labels)}
            each = np.zeros((len(index.sets), len(of_class)))
            for number, one in enumerate(index.sets):
                each[number, : len(one.labels)] = of_class[[ids[name] for name in one.labels]]
        return cls(columns, rows, parts if len(index.sets) > 1 else None, index.fingerprint, chosen, each, weight, mass)

    def stretches(self) -> Iterator[Stretch]:
        """All rows, in order, some millions at a time."""
        for part, (begin, end) in enumerate(itertools.pairwise(self.begins.tolist())):
            for first in range(begin, end, AT_ONCE):
                yield Stretch(part, first, min(first + AT_ONCE, end), begin)

    def rows(self, places: np.ndarray) -> np.ndarray:
        """int64 [k]: rows of the index."""
        return np.asarray(places, np.int64) if self.chosen is None else self.chosen.rows(places)

    def select(self, places: np.ndarray) -> Clips:
        rows = self.rows(places)
        shard = np.searchsorted(self.shard_rows, rows, side="right") - 1
        return Clips(
            row=rows,
            clip_id=self._column("clip_id", rows),
            shard=shard,
            samples=self._column("samples", rows),
            size=self._column("size", rows),
            source=None if self.source is None else self.source[shard],
        )

    def lengths(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self.rows(places)
        return rows, self._column("samples", rows)

    def _column(self, name: str, rows: np.ndarray) -> np.ndarray:
        if len(self.columns) == 1:
            return self.columns[0][name][rows]
        part = np.searchsorted(self.begins, rows, side="right") - 1
        found = np.empty(len(rows), self.columns[0][name].dtype)
        for number, columns in enumerate(self.columns):
            mine = part == number
            found[mine] = columns[name][rows[mine] - self.begins[number]]
        return found

    def weights(self, first: int, last: int) -> np.ndarray:
        if self.weight is not None:
            return self.weight[first:last]
        rows = self.rows(np.array([first, last - 1]))
        part = int(np.searchsorted(self.begins, rows[0], side="right")) - 1
        stretch = Stretch(part, int(rows[0]), int(rows[1]) + 1, int(self.begins[part]))
        weights = self._by_labels(stretch)
        return weights if self.chosen is None else weights[self.chosen.mask(stretch.first, stretch.last)]

    def _by_labels(self, stretch: Stretch) -> np.ndarray:
        """float64 [rows]: sums over the labels of each row of a stretch, chosen or not."""
        assert self.of_class is not None
        columns, own = self.columns[stretch.part], stretch.own
        offset = np.asarray(columns["label_offset"][own.start : own.stop + 1])
        label = columns["label"][offset[0] : offset[-1]]
        row = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
        return np.bincount(row, weights=self.of_class[stretch.part][label], minlength=len(offset) - 1)

    def _sum_weights(self) -> np.ndarray:
        """float64 [S]: by one pass over the clips."""
        shards = np.arange(len(self.shard_rows) - 1)
        if self.weight is not None:
            return np.bincount(np.repeat(shards, self.counts), weights=self.weight, minlength=len(shards))
        mass = np.zeros(len(shards))
        for stretch in self.stretches():
            weights = self._by_labels(stretch)
            if self.chosen is not None:
                weights *= self.chosen.mask(stretch.first, stretch.last)
            shard = np.repeat(shards, np.diff(np.clip(self.shard_rows, stretch.first, stretch.last)))
            mass += np.bincount(shard, weights=weights, minlength=len(shards))
        return mass

    def fingerprint(self) -> str:
        hashed = hashlib.sha256(self.told.encode())
        if self.chosen is not None:
            hashed.update(self.chosen.words.astype("<u8").data)
        return hashed.hexdigest()[:16]

    def weights_fingerprint(self) -> str:
        given = self.weight if self.weight is not None else self.of_class
        assert given is not None
        return hashlib.sha256(np.ascontiguousarray(given, "<f8").data).hexdigest()[:16]

    def sent(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        mapped, arrays = [], {}
        for number, columns in enumerate(self.columns):
            files: dict[str, Any] = {}
            column: Any
            for name, column in columns.items():
                file = _file_of(column)
                if isinstance(column, Paged):
                    files[name] = column.sent()
                elif file is None:
                    arrays[f"{number} {name}"] = column
                else:
                    files[name] = file
            mapped.append(files)
        more = {
            "rows": self.shard_rows,
            "source": self.source,
            "words": None if self.chosen is None else self.chosen.words,
            "of_class": None if self.of_class is None else self.of_class.ravel(),
            "weight": self.weight,
            "mass": self.mass,
        }
        arrays |= {name: array for name, array in more.items() if array is not None}
        return {"mapped": mapped, "told": self.told}, arrays

    @classmethod
    def received(cls, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Indexed:
        """What was `sent`."""
        columns = [
            {name: _mapped(files[name]) if name in files else arrays[f"{number} {name}"] for name in READ}
            for number, files in enumerate(told["mapped"])
        ]
        of_class = arrays.get("of_class")
        return cls(
            columns,
            arrays["rows"],
            arrays.get("source"),
            told["told"],
            Chosen(arrays["words"]) if "words" in arrays else None,
            None if of_class is None else of_class.reshape(len(columns), -1),
            arrays.get("weight"),
            arrays.get("mass"),
        )


def _mapped(file: Any) -> Any:
    """A column from what was sent of it."""
    return Paged.received(file) if isinstance(file, dict) else np.asarray(_map(*file))


def _file_of(column: Any) -> tuple[str, str, int, int] | None:
    """(path, dtype, first byte, entries) of a column that is mapped from a file; None where it is in memory."""
    if isinstance(column, Paged) or not isinstance(column.base, np.memmap) or column.base.filename is None:
        return None
    whole = column.base
    ahead = column.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return str(whole.filename), column.dtype.str, int(whole.offset) + ahead, len(column)


def _map(path: str, dtype: str, first: int, entries: int) -> np.ndarray:
    if not entries:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r", first, (entries,))
