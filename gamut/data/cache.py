"""A folder of pieces on a disk of this node, bounded, shared by all its processes, and intact after any kill.

The folder itself is the only record of its pieces. A piece is written as NAME.partial, checked, synced and renamed. Its
writer holds an exclusive lock (flock) on it, so that other processes wait for the piece instead of fetching it too; a
.partial without a lock was left by a dead process. Space is reserved before the first byte is fetched, as the size of
the .partial, under the lock of the folder: the sum of all sizes in the folder never exceeds the bound. The least
recently read piece is removed first; one that is being read has a shared lock and stays. The kernel releases locks
however a process ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gamut.errors import ShardError
from gamut.files import TEMPORARY, lock, lock_open, sync

LOCK = "lock"
PATIENCE = 120.0  # seconds to wait for space that others are using


class Cache:
    """At most `limit` bytes in `folder` (created if missing), for all processes that open it with the same limit.

    >>> cache = Cache(Path("/tmp/pieces"), limit=10**9)      # doctest: +SKIP
    >>> cache.read("a", 1000, lambda file: file.write(bytes(1000)), at=10, length=5)      # doctest: +SKIP
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ShardError(f"The cache {folder} cannot be made: {error.strerror}.") from error

    def read(self, name: str, size: int, fill: Callable[[BinaryIO], object], at: int, length: int) -> bytes:
        """`length` bytes from byte `at` of the piece `name`, which has `size` bytes.

        If it is missing, `fill` writes it into the file that it is given, and checks it: when `fill` returns, the piece
        is published; when it raises, nothing is left and the exception reaches the caller. Raises ShardError where the
        disk fails or `size` does not fit; ValueError where `fill` does not leave the file at byte `size`.
        """
        if size > self.limit:
            raise ShardError(
                f"The cache {self.folder} may hold {self.limit:,} bytes, which is less than one piece of {size:,}. "
                "Raise remote.cache_gb, or lower remote.piece_mb."
            )
        until = time.monotonic() + PATIENCE
        try:
            while True:
                payload = self._read_there(name, size, at, length)
                if payload is None:
                    payload = self._fetch(name, size, fill, at, length, until)
                if payload is not None:
                    return payload
        except OSError as error:
            raise ShardError(
                f"The cache {self.folder} cannot be used: {error.strerror or error} ({size:,} bytes of piece {name}). "
                "Free its disk, or name another folder with remote.cache."
            ) from error

    def drop(self, name: str) -> None:
        """Remove a damaged piece, if no process is reading it."""
        self._remove(name)

    def used(self) -> int:
        """Bytes of all pieces in the folder, complete or partial, at one moment."""
        with self._space():
            sizes = {
                number: size for _, size, _, number in self._there()
            }  # a file that is being renamed may be seen twice
        return sum(sizes.values())

    def _read_there(self, name: str, size: int, at: int, length: int) -> bytes | None:
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with _locked(descriptor, shared=True):
            about = os.fstat(descriptor)
            if about.st_nlink and about.st_size == size:
                _was_read(descriptor)
                return read_at(descriptor, length, at)
        if about.st_nlink:  # wrong size: the disk has lost some of it
            self._remove(name)
        return None

    def _fetch(
        self, name: str, size: int, fill: Callable[[BinaryIO], object], at: int, length: int, until: float
    ) -> bytes | None:
        """Write and publish the piece; None where it must be looked for again."""
        partial, final = self.folder / (name + TEMPORARY), self.folder / name
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with _locked(descriptor):  # waits while another process fetches the same piece
            if not _is(descriptor, partial):
                return None  # it was published meanwhile, or removed as left by a dead process
            try:
                if final.exists():
                    return None
                while not self._reserve(descriptor, size):
                    if time.monotonic() > until:
                        raise ShardError(
                            f"The cache {self.folder} of {self.limit:,} bytes is too small for what this node reads at "
                            "the same time. Raise remote.cache_gb, or lower remote.piece_mb or loader.workers."
                        )
                    time.sleep(0.05)
                with os.fdopen(descriptor, "r+b", closefd=False) as file:
                    fill(file)
                    filled = file.tell()  # the file has its size already
                if filled != size:
                    raise ValueError(f"a piece of {size} bytes was filled with {filled}")
                _was_read(descriptor)
                os.fsync(descriptor)
                with self._space():  # or a process that sums up the folder might miss the renamed file
                    os.rename(partial, final)
                sync(self.folder)
                return read_at(descriptor, length, at)
            finally:
                if _is(descriptor, partial):
                    os.unlink(partial)

    def _reserve(self, descriptor: int, size: int) -> bool:
        """Give the file its size, removing other pieces if need be; False where the folder has no room."""
        with self._space():
            os.ftruncate(descriptor, 0)  # discards what a dead process wrote
            there = sorted(self._there())
            excess = sum(entry[1] for entry in there) + size - self.limit
            for _, held, name, _ in there:
                dead = name.endswith(TEMPORARY)
                if (dead or excess > 0) and self._remove(name):
                    excess -= held
            if excess > 0:
                return False
            os.posix_fallocate(descriptor, 0, size)  # a full disk shows here, not in the middle of the piece
            return True

    @contextmanager
    def _space(self) -> Iterator[None]:
        """Keep other processes from reserving space."""
        with lock(self.folder / LOCK):
            yield

    def _there(self) -> Iterator[tuple[int, int, str, int]]:
        """(time it was last read, bytes, name, inode) of every file but the lock."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    about = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.name != LOCK:
                    yield about.st_mtime_ns, about.st_size, entry.name, about.st_ino

    def _remove(self, name: str) -> bool:
        """Unlink a file unless another process holds its lock; returns whether it is gone."""
        path = self.folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        with _locked(descriptor, wait=False) as held:
            if held and _is(descriptor, path):
                os.unlink(path)
            return held


def _was_read(descriptor: int) -> None:
    """Record the time of reading, exactly: the kernel's own timestamps stay equal for some milliseconds."""
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))


@contextmanager
def _locked(descriptor: int, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of a descriptor as `lock_open` does, then close it."""
    try:
        with lock_open(descriptor, wait=wait, shared=shared) as held:
            yield held
    finally:
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one with this name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def read_at(descriptor: int, size: int, at: int) -> bytes:
    """`size` bytes from byte `at`, or fewer where the file ends. Raises OSError."""
    payload = os.pread(descriptor, size, at)
    while 0 < len(payload) < size:  # a read may return less than was asked for
        rest = os.pread(descriptor, size - len(payload), at + len(payload))
        if not rest:
            break
        payload += rest
    return payload
