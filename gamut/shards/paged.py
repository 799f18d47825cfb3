"""The columns of a remote index that is too large to be fetched whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from gamut.errors import ShardError
from gamut.remote import Remote
from gamut.remote.pages import Page
from gamut.remote.ranges import Ranged
from gamut.shards.check import require_within
from gamut.shards.columns import SHARDS, map_column

LISTED = [name for name in SHARDS if not name.startswith("shard-label")]  # fetched at once: 40 bytes a shard and a name


class Paged:
    """A column of which the pages that hold what is asked for are fetched first, and checked.

    It answers as an array of one dimension to what is done with columns: its length, type and bytes, entries and
    stretches of it. `np.asarray` fetches all of it.
    """

    ndim = 1

    def __init__(self, file: Ranged, dtype: type | np.dtype, entries: int, end: int | None = None) -> None:
        """end: the entries lie in 0 to `end` - 1, or the index is damaged. Raises ValueError and OSError as
        `map_column` does."""
        self._file, self._end = file, end
        self._array, self._start = map_column(file.path, dtype, entries)  # type: ignore[arg-type]
        self.dtype, self.shape, self.nbytes = self._array.dtype, self._array.shape, self._array.nbytes

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, at: Any) -> Any:
        each = self.dtype.itemsize
        if isinstance(at, slice):
            asked = range(*at.indices(len(self)))
            if asked:
                first, last = sorted((asked[0], asked[-1]))
                self._check(self._file.require(self._start + first * each, self._start + (last + 1) * each))
        else:
            rows = np.arange(len(self))[at] if isinstance(at, np.ndarray) and at.dtype == bool else np.asarray(at)
            if rows.size:
                rows = np.where(rows < 0, rows + len(self), rows).ravel()
                if not 0 <= rows.min() <= rows.max() < len(self):
                    raise IndexError(f"{at} is not within {len(self)} entries")
                self._check(self._file.require_at(self._start + rows.astype(np.int64) * each, each))
        return self._array[at]

    def item(self, row: int) -> Any:
        """An entry as Python knows it."""
        return self[row].item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None and not copy else np.array(whole, dtype, copy=copy)

    def _check(self, pages: list[Page]) -> None:
        """That entries of new pages are where they may be: the index need not be of our making."""
        if self._end is None:
            return
        for page in pages:
            first, last = (max(0, byte - self._start) // self.dtype.itemsize for byte in (page.begin, page.end))
            try:
                require_within(page.name, self._array[first:last], self._end)
            except ValueError as error:
                raise ShardError(
                    f"The index in {self._file.base} is damaged ({error}). Have it made again where it lies: "
                    "python -m gamut.shards index FOLDER"
                ) from error

    def sent(self) -> dict[str, Any]:
        """The column as another process can be told of it, in JSON."""
        file = self._file
        return {
            "path": str(file.path),
            "pages": file.pages,
            "base": file.base,
            "remote": asdict(file.settings),
            "dtype": self.dtype.str,
            "entries": len(self),
            "end": self._end,
        }

    @classmethod
    def received(cls, told: Mapping[str, Any]) -> Paged:
        """What was `sent`."""
        pages = [Page(*page) for page in told["pages"]]
        file = Ranged(Path(told["path"]), pages, told["base"], Remote(**told["remote"]))
        return cls(file, np.dtype(told["dtype"]), told["entries"], told["end"])


def page_columns(
    folder: Path, entries: Mapping[str, int], dtypes: Mapping[str, type], pages: list[Page], ends: Mapping[str, int],
    base: str, remote: Remote,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The columns of an index in `folder` that are fetched from `base`: as `Paged`, what is `LISTED` as arrays."""
    own: dict[str, list[Page]] = {name: [] for name in entries}
    for page in pages:
        own[page.name].append(page)
    found: dict[str, Any] = {}
    for name, count in entries.items():
        file = Ranged(folder / "index" / f"{name}.npy", own[name], base, remote)
        column = Paged(file, dtypes[name], count, ends.get(name))
        found[name] = np.asarray(column) if name in LISTED else column
    return cast(dict[str, np.ndarray], found)
