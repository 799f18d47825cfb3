"""The columns of an index: flat arrays in files of their own that grow at their end alone, with digests of their pages.

A column is NAME.npy. Its header says how many entries it was begun with; how many it has by now, index.json says: what
lies behind is what a killed `add` left, and the next one cuts it off. So no byte that an earlier generation reads is
ever written again, and an index of any number of parts is as many files as one of a single part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from gamut import files
from gamut.errors import ShardError
from gamut.remote import pages
from gamut.remote.pages import Page

DTYPES = {
    "clip_id": np.uint64,
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "samples": np.int64,
    "checksum": np.uint64,
    "label_offset": np.int64,
    "label": np.int32,
    "key_offset": np.int64,
    "key": np.uint8,
}
FOREIGN = {"codec": np.uint8}  # of third-party shards
EVENTS = {
    "event_offset": np.int64,
    "event_onset": np.int64,
    "event_end": np.int64,
    "event": np.int32,
}  # of strong labels
COLUMN = "column-"  # prefix of the files of a set's own columns, int64
SHARDS = {  # an entry a shard, or a class of a shard; of an index of many shards or of several parts
    "shard-size": np.int64,
    "shard-clips": np.int64,
    "shard-samples": np.int64,
    "shard-checksum": np.uint64,
    "shard-name_offset": np.int64,
    "shard-name": np.uint8,
    "shard-label_offset": np.int64,
    "shard-label": np.int32,
    "shard-label_count": np.int32,
}
RAGGED = {
    "label": "label_offset",
    "key": "key_offset",
    **dict.fromkeys(list(EVENTS)[1:], "event_offset"),
    "shard-name": "shard-name_offset",
    "shard-label": "shard-label_offset",
    "shard-label_count": "shard-label_offset",
}
_BLOCK = 1 << 20
_intact: set[tuple] = set()  # versions of pages that this process, or the one that it was forked from, has checked


class Mapped(NamedTuple):
    """A column, mapped read-only from its file, and the byte where it begins there."""

    array: np.ndarray
    start: int


def dtype_of(name: str) -> type:
    """Of a column's entries."""
    return np.int64 if name.startswith(COLUMN) else (DTYPES | FOREIGN | EVENTS | SHARDS)[name]


def path_of(folder: Path, name: str) -> Path:
    """The file of a column of the index of the set in `folder`."""
    return folder / "index" / f"{name}.npy"


def map_column(path: Path, dtype: type, entries: int) -> Mapped:
    """The first `entries` of a column. Raises ValueError where the file has fewer, or another type; OSError."""
    with path.open("rb") as file:
        start = _start(file, path, dtype)
        there = (os.fstat(file.fileno()).st_size - start) // np.dtype(dtype).itemsize
        if not 0 <= entries <= there:
            raise ValueError(f"{path.name} has {there} entries where {entries} are expected")
        array = np.memmap(file, dtype, "r", start, (entries,))
        return Mapped(np.asarray(array), start)  # over the same memory: an np.memmap takes several times as long


def _start(file: BinaryIO, path: Path, dtype: type) -> int:
    """The byte where the entries begin. Raises ValueError where they are not of this type."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{path.name} is of another version of .npy")
    shape, _, found = np.lib.format.read_array_header_1_0(file)
    if found != dtype or len(shape) != 1:
        raise ValueError(f"{path.name} holds {found} {list(shape)}")
    return file.tell()


def damaged_columns(folder: Path, of: Iterable[Page]) -> list[str]:
    """Names of the files of an index of which a page is not as it was written. A page is read once a process, as long
    as the file's size, its times and its place on the disk stay: 2 million clips have 0.16 GB."""
    damaged: dict[str, None] = {}
    opened: BinaryIO | None = None
    name = ""
    try:
        for page in of:
            if opened is None or page.name != name:
                if opened is not None:
                    opened.close()
                opened, name = path_of(folder, page.name).open("rb"), page.name
            there = os.fstat(opened.fileno())
            version = (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns, *page)
            if version in _intact:
                continue
            if pages.digest(opened, page.begin, page.end) == page.digest:
                _intact.add(version)
            else:
                damaged[f"{name}.npy"] = None
    finally:
        if opened is not None:
            opened.close()
    return list(damaged)


class Appender:
    """Appends to columns in a folder, and digests what it appends page by page. Memory does not grow.

    there: entries that each column has already; one that is not named is begun anew. `close` makes everything durable.
    Raises ShardError where the disk refuses.
    """

    def __init__(self, folder: Path, there: Mapping[str, int] | None = None) -> None:
        self.folder = folder
        self.there = there or {}
        self._columns: dict[str, _Column] = {}

    def append(self, name: str, values: object) -> None:
        """More entries of a column, converted to its type."""
        array: np.ndarray = np.ascontiguousarray(values, dtype_of(name))
        path = self.folder / f"{name}.npy"
        try:
            if name not in self._columns:
                self._columns[name] = _Column(path, array.dtype, self.there.get(name))
            self._columns[name].write(array)
        except OSError as error:
            raise ShardError(files.refusal(error, path, array.nbytes)) from error

    def again(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change the entries of a column that was begun anew, in place."""
        self._columns[name].again(change)

    def close(self, passing: Collection[str] = ()) -> None:
        """Make what was appended durable, but for columns that pass."""
        for name, column in self._columns.items():
            try:
                column.close(durable=name not in passing)
            except OSError as error:
                raise ShardError(files.refusal(error, column.path)) from error

    def abandon(self) -> None:
        """Close the files, whatever was written: they are not named anywhere yet."""
        for column in self._columns.values():
            column.file.close()

    @property
    def entries(self) -> dict[str, int]:
        """Of each column that was appended to, with those that it had before."""
        return {name: column.entries for name, column in self._columns.items()}

    @property
    def edges(self) -> dict[str, tuple[int, int]]:
        """Of each column that was appended to: the bytes of its file where that begins and ends."""
        return {name: (column.begin, column.file_end) for name, column in self._columns.items()}

    @property
    def digests(self) -> dict[str, list[str]]:
        """Of the pages that were appended to each column, once they are closed."""
        return {name: column.digests for name, column in self._columns.items()}


class _Column:
    def __init__(self, path: Path, dtype: np.dtype, there: int | None) -> None:
        self.path, self.dtype, self.entries, self.fresh = path, dtype, there or 0, there is None
        self.file = path.open("w+b" if there is None else "r+b", buffering=_BLOCK)
        self.digests: list[str] = []
        self._hash, self._room = xxhash.xxh3_64(), pages.PAGE
        self.begin = 0
        if there is None:
            self._header()
            self.begin = self.file.tell()
        else:
            end = _start(self.file, path, dtype.type) + there * dtype.itemsize
            self.file.truncate(end)  # what a killed writer left
            self.file.seek(end)
            self.begin = end
        self._before = self.entries

    @property
    def file_end(self) -> int:
        """Byte of the file where its entries end."""
        return self.begin + (self.entries - self._before) * self.dtype.itemsize

    def write(self, array: np.ndarray) -> None:
        files.hook("write", self.path)
        payload = memoryview(array.data).cast("B") if array.size else memoryview(b"")
        self.entries += len(array)
        while payload:
            now = payload[: self._room]
            self.file.write(now)
            self._hash.update(now)
            self._room -= len(now)
            payload = payload[len(now) :]
            if not self._room:
                self._end_page()

    def again(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        start, count = self.file.tell() - self.entries * self.dtype.itemsize, self.entries
        self.entries, self.digests = 0, []
        self._hash, self._room = xxhash.xxh3_64(), pages.PAGE
        for first in range(0, count, _BLOCK):
            at = start + first * self.dtype.itemsize
            self.file.seek(at)
            payload = self.file.read(min(_BLOCK, count - first) * self.dtype.itemsize)
            self.file.seek(at)
            self.write(np.ascontiguousarray(change(np.frombuffer(payload, self.dtype)), self.dtype))

    def close(self, durable: bool) -> None:
        if self._room < pages.PAGE:
            self._end_page()
        if self.fresh:
            self.file.seek(0)
            self._header()
        self.file.flush()
        if durable:
            files.hook("fsync", self.path)
            os.fsync(self.file.fileno())
        self.file.close()

    def _header(self) -> None:
        """As `np.save` writes it: as long for any number of entries."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        about = {"descr": descr, "fortran_order": False, "shape": (self.entries,)}
        np.lib.format.write_array_header_1_0(self.file, about)

    def _end_page(self) -> None:
        self.digests.append(self._hash.hexdigest())
        self._hash, self._room = xxhash.xxh3_64(), pages.PAGE


def digest_of(path: Path) -> str:
    """xxh3_64 (hexadecimal) of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()  # type: ignore[arg-type]
