"""However many write a cache, and wherever they are killed: what can be read is right and whole."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gamut.errors import FeatureError
from gamut.features import FeatureCache, write_cache
from gamut.features.store import Store

X = np.random.default_rng(0).normal(size=(24, 2, 3, 4)).astype(np.float32)


def write(folder: Path) -> FeatureCache:
    return write_cache(folder, X, per_shard=4, dtype="fp32")


def in_child(work: Callable[[], object]) -> int:
    """The wait status of a forked child that did `work`."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(call: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Do `work` in a child that is killed at its n-th fsync or rename; False where it has fewer."""
    calls = [0]

    def deadly(real: Callable) -> Callable:
        def wrapped(*args: object) -> object:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", deadly(os.fsync))
        patch.setattr(os, "replace", deadly(os.replace))
        status = in_child(work)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def test_a_writer_killed_anywhere_leaves_nothing_that_can_be_read_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = 1
    while killed_at(call, monkeypatch, functools.partial(write, folder := tmp_path / f"c{call}")):
        if (folder / "cache.json").exists():  # killed after the last rename: it is whole
            np.testing.assert_array_equal(FeatureCache(folder).read(np.arange(24)), X)
        else:
            with pytest.raises(FeatureError, match=r"not finished|There is no cache"):
                FeatureCache(folder)
        cache = write(folder)  # goes on where it was
        np.testing.assert_array_equal(cache.read(np.arange(24)), X)
        assert not list(folder.rglob("*.partial"))
        call += 1
    assert call > 30  # about.json, 6 shards, 7 columns and cache.json, 3 calls each


def write_many_times(folder: Path, times: int) -> None:
    for _ in range(times):
        write(folder)


def test_writers_at_once_make_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many_times, args=(tmp_path / "c", 3)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    np.testing.assert_array_equal(FeatureCache(tmp_path / "c").read(np.arange(24)), X)


def begin(folder: Path) -> Store:
    """The making of X's cache, with nothing made yet."""
    cache = write(folder)
    made = Store(cache.folder, cache.about, cache.clip_id, cache.rows, [f"clip{row}" for row in range(24)])
    made.unseal(range(6))
    return made


def put(made: Store, number: int, clips: np.ndarray) -> None:
    records = made.records(number)
    records.add(made.clip_id[clips], torch.from_numpy(X[clips]))
    made.put(records, [])


def test_a_shard_belongs_to_one_writer_at_a_time(tmp_path: Path) -> None:
    made = begin(tmp_path / "c")
    other = Store.begin(tmp_path / "c", made.about, made.clip_id, made.row, made.keys)
    with made.claim(2) as mine:
        assert mine
        with other.claim(2) as theirs:
            assert not theirs
        with other.claim(3) as theirs:
            assert theirs
        put(made, 2, np.arange(8, 12))
    with other.claim(2) as theirs:
        assert not theirs  # it is there
    assert made.missing() == [0, 1, 3, 4, 5]
    with pytest.raises(FeatureError, match=r"lacks 000000.safetensors; run the extraction again"):
        made.seal()


def test_a_killed_writer_gives_its_shard_back(tmp_path: Path) -> None:
    made = begin(tmp_path / "c")

    def die() -> None:
        with made.claim(0):
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(in_child(die))
    with made.claim(0) as mine:
        assert mine


def test_a_shard_of_another_cache_or_cut_short_is_made_again(tmp_path: Path) -> None:
    made = begin(tmp_path / "c")
    other = write_cache(tmp_path / "other", X + 1, per_shard=4, dtype="fp32")
    write(tmp_path / "c")
    made.path(1).write_bytes((other.folder / made.path(1).name).read_bytes())
    os.truncate(made.path(2), made.path(2).stat().st_size - 1)
    made.unseal([])
    assert made.missing() == [1, 2]
    np.testing.assert_array_equal(write(tmp_path / "c").read(np.arange(24)), X)


def test_a_folder_of_other_features_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "c")
    with pytest.raises(FeatureError, match="cache of other features"):
        write_cache(tmp_path / "c", X + 1, per_shard=4, dtype="fp32")
    np.testing.assert_array_equal(FeatureCache(tmp_path / "c").read(np.arange(24)), X)


def test_the_clips_of_another_shard_are_refused(tmp_path: Path) -> None:
    made = begin(tmp_path / "c")
    with made.claim(0):
        with pytest.raises(FeatureError, match="other clips"):
            put(made, 0, np.arange(4, 8))
        with pytest.raises(FeatureError, match="other clips"):
            put(made, 0, np.array([1, 0, 2, 3]))


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = begin(tmp_path / "c")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with made.claim(0), pytest.raises(FeatureError, match=r"000000.safetensors cannot be written: No space left"):
            put(made, 0, np.arange(4))
    assert made.missing() == list(range(6))
    assert not list(made.folder.glob("000000*"))
