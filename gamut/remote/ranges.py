"""A file of a remote index of which this node has the pages that were asked for, and no others."""

from __future__ import annotations

import itertools
import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gamut import files
from gamut.errors import ShardError
from gamut.remote import Remote
from gamut.remote.fetch import fetch, open_store
from gamut.remote.pages import Page, digest
from gamut.remote.store import Store

RUN = 16  # pages that one request may ask for, and one lock is for
GAP = 2  # from one missing page to the next, up to which one request asks for both, and for what is between
LOCKS = 64
THREADS = 8  # requests of a process at a time
HELD = 1 << 24  # bytes fetched that are held in memory until they are checked; more go to a file

_stores: dict[tuple[int, str, Remote], Store] = {}  # of this process, and those that it was forked from


class Ranged:
    """The copy of a remote file: as long, with holes where nothing was fetched.

    A page counts as there once its bytes have the digest in index.json, which a process looks at when it first needs
    the page: a hole, and what a kill left of a page, have another. Any number of processes and threads may ask; a page
    that several lack is fetched by one of them.
    """

    def __init__(self, path: Path, pages: Sequence[Page], base: str, settings: Remote) -> None:
        """path: where the copy is, or will be; pages: all that the file has, ascending; base: as of `open_store`."""
        self.path, self.pages, self.base, self.settings = path, pages, base, settings
        self._ends = np.array([page.end for page in pages], np.int64)
        self._there = np.zeros(len(pages), bool)

    def require(self, begin: int, end: int) -> list[Page]:
        """Have the pages with bytes [begin, end) here; returns those that this process did not know to be."""
        if begin >= end:
            return []
        return self._require(range(self._page_of(begin), self._page_of(end - 1) + 1))

    def require_at(self, first: np.ndarray, length: int) -> list[Page]:
        """`require` for stretches of so many bytes that begin at int64 [k]."""
        if self._there.all():
            return []
        first = np.asarray(first, np.int64)
        ends = (np.searchsorted(self._ends, byte, side="right") for byte in (first, first + length - 1))
        return self._require(np.unique(np.concatenate(list(ends))).tolist())

    def begin(self, header: int, end: int) -> None:
        """Make the copy `end` bytes long, or leave it where it is longer, with the remote file's first `header` bytes.

        Raises ShardError where the remote file is missing, or has less than `end` bytes; OSError.
        """
        with self.path.open("ab") as copy:
            copy.truncate(max(end, copy.tell()))
        with tempfile.SpooledTemporaryFile(max_size=HELD) as sink:
            store = self._store()
            fetch(store, self.base, self.name, sink, self.settings, end=header, least=end)  # type: ignore[arg-type]
            with self.path.open("r+b") as copy:
                _transfer(sink, copy, 0, header)

    @property
    def name(self) -> str:
        """Of the file, in its base."""
        return f"index/{self.path.name}"

    def _page_of(self, byte: int) -> int:
        return int(np.searchsorted(self._ends, byte, side="right"))

    def _require(self, numbers: Iterable[int]) -> list[Page]:
        new = [number for number in numbers if not self._there[number]]
        if not new:
            return []
        try:
            runs: dict[int, list[int]] = {}
            for number in self._absent(new):
                runs.setdefault(number // RUN, []).append(number)
            if len(runs) > 1:
                with ThreadPoolExecutor(min(THREADS, len(runs))) as pool:
                    list(pool.map(self._bring, runs.values()))
            else:
                for run in runs.values():
                    self._bring(run)
        except OSError as error:
            raise ShardError(no_room(self.base, self.path.parent, error)) from error
        self._there[new] = True
        return [self.pages[number] for number in new]

    def _absent(self, numbers: Iterable[int]) -> list[int]:
        with self.path.open("rb") as copy:
            return [number for number in numbers if not _intact(copy, self.pages[number])]

    def _bring(self, numbers: Sequence[int]) -> None:
        """Fetch those pages of a run that are missing."""
        lock = zlib.crc32(f"{self.path.name} {numbers[0] // RUN}".encode()) % LOCKS
        with files.lock(self.path.parent / f"pages-{lock:02d}.lock"):
            absent = self._absent(numbers)  # another process may have brought them meanwhile
            apart = [at for at in range(1, len(absent)) if absent[at] - absent[at - 1] > GAP]
            for first, last in itertools.pairwise([0, *apart, len(absent)]):
                if first < last:
                    self._fetch(self.pages[absent[first] : absent[last - 1] + 1])

    def _fetch(self, some: Sequence[Page]) -> None:
        """Fetch pages that follow each other by one request."""
        begin, end = some[0].begin, some[-1].end

        def check(sink: BinaryIO) -> str | None:
            intact = all(digest(sink, page.begin - begin, page.end - begin) == page.digest for page in some)
            return None if intact else f"{self.path.name} does not have the checksum in index.json"

        with tempfile.SpooledTemporaryFile(max_size=HELD, dir=str(self.path.parent)) as sink:
            store = self._store()
            fetch(store, self.base, self.name, sink, self.settings, begin=begin, end=end, check=check)  # type: ignore[arg-type]
            with self.path.open("r+b") as copy:
                _transfer(sink, copy, begin, end - begin)

    def _store(self) -> Store:
        key = (os.getpid(), self.base, self.settings)
        if key not in _stores:
            _stores[key] = open_store(self.base, self.settings)
        return _stores[key]


def no_room(where: str, folder: Path, error: OSError) -> str:
    """What is said where this node's disk does not take an index."""
    return (
        f"The index of {where} cannot be copied to {folder}: {error.strerror or error}. Free its disk, or name another "
        "folder with remote.cache=FOLDER or the environment variable GAMUT_CACHE."
    )


def _intact(copy: BinaryIO, page: Page) -> bool:
    return digest(copy, page.begin, page.end) == page.digest


def _transfer(source: tempfile.SpooledTemporaryFile, copy: BinaryIO, at: int, length: int) -> None:
    source.seek(0)
    copy.seek(at)
    while length > 0 and (block := source.read(min(length, 1 << 20))):
        copy.write(block)
        length -= len(block)
