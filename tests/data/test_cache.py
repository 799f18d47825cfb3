"""The node's cache: bounded, shared, and never anything but whole pieces, whoever is killed when."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from gamut.data import cache as module
from gamut.data.cache import Cache
from gamut.errors import ShardError

fork = multiprocessing.get_context("fork")


def content(name: str, size: int = 1000) -> bytes:
    return (name.encode() * size)[:size]


def filler(name: str, calls: list[str] | None = None, size: int = 1000) -> Callable[[BinaryIO], None]:
    def fill(file: BinaryIO) -> None:
        if calls is not None:
            calls.append(name)
        file.write(content(name, size))

    return fill


def read(cache: Cache, name: str, calls: list[str] | None = None, size: int = 1000) -> None:
    assert cache.read(name, size, filler(name, calls, size), 7, 100) == content(name, size)[7:107]


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {"lock"}


def test_a_piece_is_fetched_once_and_the_one_read_longest_ago_goes_first(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path / "c", 3000), []
    for name in "abcab":
        read(cache, name, calls)
    assert calls == ["a", "b", "c"]
    assert cache.used() == 3000
    read(cache, "d", calls)
    assert names(cache) == {"a", "b", "d"}
    read(cache, "e", calls, size=1500)  # takes the place of two
    assert names(cache) == {"d", "e"}
    assert cache.used() == 2500
    with pytest.raises(ShardError, match=r"3,000 bytes, which is less than one piece of 3,001"):
        read(cache, "f", size=3001)


def test_what_is_open_stays_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "c", 2000)
    read(cache, "a")
    read(cache, "b")
    with open(cache.folder / "a", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        read(cache, "c")
        assert names(cache) == {"a", "c"}  # b was read after a, but a is open
        with open(cache.folder / "c", "rb") as other:
            fcntl.flock(other, fcntl.LOCK_SH)
            monkeypatch.setattr(module, "PATIENCE", 0.1)
            with pytest.raises(
                ShardError, match=r"too small for what this node reads at the same time.*remote\.cache_gb"
            ):
                read(cache, "d")
            assert names(cache) == {"a", "c"}
    read(cache, "d")
    assert names(cache) == {"c", "d"}


def test_a_failed_fetch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "c", 2000)

    def fails(file: BinaryIO) -> None:
        file.write(b"half")
        raise ShardError("the server is gone")

    with pytest.raises(ShardError, match=r"the server is gone"):
        cache.read("a", 1000, fails, 0, 10)
    assert names(cache) == set()

    for size in (999, 1001):
        with pytest.raises(ValueError, match=f"a piece of 1000 bytes was filled with {size}"):
            cache.read("a", 1000, filler("a", size=size), 0, 10)
    assert names(cache) == set()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ShardError, match=r"No space left on device \(1,000 bytes of piece a\).*remote\.cache"):
        read(cache, "a")
    assert names(cache) == set()


def test_a_piece_that_lost_bytes_or_is_dropped_is_fetched_again(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path / "c", 2000), []
    read(cache, "a", calls)
    os.truncate(cache.folder / "a", 500)
    read(cache, "a", calls)
    cache.drop("a")
    read(cache, "a", calls)
    assert calls == ["a", "a", "a"]


CALLS = ("fsync", "rename", "posix_fallocate", "ftruncate", "unlink", "open", "utime")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "after", [pytest.param(False, id="before"), pytest.param(True, id="after", marks=pytest.mark.long)]
)
def test_a_kill_at_any_call_leaves_only_whole_pieces(tmp_path: Path, call: str, after: bool) -> None:
    """A child reads five pieces, one twice, through a cache of two and is killed at its n-th call, for every n."""
    done = number = 0
    while not done:
        number += 1
        folder = tmp_path / str(number)
        child = os.fork()
        if not child:
            _read_until_killed(folder, call, number, after)
        _, status = os.waitpid(child, 0)
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        done = status == 0
        cache = Cache(folder, 2000)
        assert cache.used() <= 2000
        for name in names(cache):
            if not name.endswith(".partial"):
                assert (cache.folder / name).read_bytes() == content(name)
        for name in "edcba":
            read(cache, name)
        assert cache.used() == 2000
        assert names(cache) == {"a", "b"}  # nothing of the dead is left
    assert number > 1  # or nobody was killed


def _read_until_killed(folder: Path, call: str, number: int, after: bool) -> None:
    real, count = getattr(os, call), 0

    def counted(*words, **options):
        nonlocal count
        count += 1
        if count == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*words, **options)
        finally:  # also behind a call that fails, such as the first look for a piece
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        cache = Cache(folder, 2000)
        setattr(os, call, counted)
        for name in "aabcde":
            read(cache, name)
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_in_the_middle_of_a_fetch_lets_the_next_one_in(tmp_path: Path) -> None:
    begun, folder = fork.Event(), tmp_path / "c"

    def hang(file: BinaryIO) -> None:
        file.write(b"x" * 400)
        file.flush()
        begun.set()
        signal.pause()

    process = fork.Process(target=lambda: Cache(folder, 1000).read("a", 1000, hang, 0, 10))
    process.start()
    assert begun.wait(60)
    answers: list[bytes] = []
    waiting = threading.Thread(target=lambda: answers.append(Cache(folder, 1000).read("a", 1000, filler("a"), 7, 100)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()  # it waits for the other's fetch
    process.kill()
    process.join()
    waiting.join(60)
    assert answers == [content("a")[7:107]]
    assert names(Cache(folder, 1000)) == {"a"}


def _read_many(folder: Path, seed: int, counter) -> None:
    cache = Cache(folder, 5000)
    order = [f"{(7 * seed + 3 * n) % 11:02d}" for n in range(60)]
    for name in order:
        calls: list[str] = []
        read(cache, name, calls)
        assert cache.used() <= 5000
        with counter.get_lock():
            counter.value += len(calls)


def test_processes_share_a_cache_smaller_than_what_they_read(tmp_path: Path) -> None:
    counter = fork.Value("q", 0)
    processes = [fork.Process(target=_read_many, args=(tmp_path / "c", seed, counter)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert 11 <= counter.value < 240
    assert Cache(tmp_path / "c", 5000).used() <= 5000


def test_processes_that_want_one_piece_fetch_it_once(tmp_path: Path) -> None:
    counter = fork.Value("q", 0)

    def work() -> None:
        for number in range(20):
            calls: list[str] = []
            read(Cache(tmp_path / "c", 10**6), f"{number}", calls)
            with counter.get_lock():
                counter.value += len(calls)

    processes = [fork.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert counter.value == 20
