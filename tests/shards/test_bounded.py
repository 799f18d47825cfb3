"""Memory of building, opening and describing an index does not grow with its clips."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gamut.remote import pages
from gamut.shards import Index, batching, build, check, doubles, show, statistics
from gamut.shards.heard import Heard
from gamut.shards.part import Part

A_SHARD = 2000


def parts(clips: int) -> Iterator[Part]:
    """Of a set without tars: each clip's checksum and length follow from its number."""
    for number, first in enumerate(range(0, clips, A_SHARD)):
        rows = range(first, first + A_SHARD)
        part = Part(f"shard-{number:06d}.tar", 2, number, "set", key=[f"clip-{row:07d}" for row in rows])
        part.offset, part.bytes = [1] * A_SHARD, [1] * A_SHARD
        part.samples = [400 + row * 7919 % 100_003 for row in rows]
        part.clip_checksum = [row * 0x9E3779B97F4A7C15 % 2**64 for row in rows]
        part.labels, part.columns = [[row % 50, row % 7] for row in rows], {"split": [row % 2 for row in rows]}
        yield part


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at once while it worked."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks_of(clips: int, folder: Path) -> dict[str, int]:
    """What was done -> bytes."""
    found = {"build": peak(lambda: build.build(folder, "set", [str(n) for n in range(50)], parts(clips)))}
    opened: list[Index] = []
    found["open"] = peak(lambda: opened.append(Index.open(folder, tars=False)))
    index = opened[0]
    found["doubles"] = peak(lambda: doubles.find_doubles(index, index.checksum))
    none = doubles.Doubles(0, 0, 0, "", ())
    found["describe"] = peak(lambda: statistics._statistics(index, Heard(), none))
    found["find"] = peak(lambda: show.find(index, f"clip-{clips - 1:07d}"))
    assert np.array_equal(index.shard, np.repeat(np.arange(clips // A_SHARD), A_SHARD))
    return found


def test_four_times_the_clips_take_the_memory_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (build, "IDS"), (check, "ROWS"), (doubles, "AT_ONCE"), (statistics, "AT_ONCE"), (show, "COMPARED"),
        (pages, "_BLOCK"), (batching, "MOST"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 1 << 11)
    _, few, many = (peaks_of(clips, tmp_path / str(clips)) for clips in (4_000, 40_000, 160_000))  # the first warms up
    for what, bytes_of in many.items():
        # A column of the clips that are more has 960,000 bytes.
        assert bytes_of < few[what] + 300_000, f"{what}: {few[what]:,} bytes, then {bytes_of:,}"


@pytest.mark.parametrize("at_once", [3, 10, 1 << 20])
def test_doubles_and_middles_are_those_of_a_sorted_copy(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubles, "AT_ONCE", at_once)
    monkeypatch.setattr(statistics, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 9, 40):
        values = rng.integers(0, 2**64, 12, np.uint64)[rng.integers(0, 12, n)]
        expected = [np.flatnonzero(values == one).tolist() for one in np.unique(values)]
        found = sorted(group.tolist() for group in doubles._equal(values))
        assert found == sorted(group for group in expected if len(group) > 1)
        lengths = rng.integers(1, 50, n)
        assert [statistics.kth(lengths, k) for k in range(n)] == np.sort(lengths).tolist()


def test_equal_ids_are_found_in_any_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gamut.errors import ShardError

    rng = np.random.default_rng(0)
    monkeypatch.setattr(build, "_key", lambda place, entries, row: str(row))
    for at_once in (2, 7, 1 << 20):
        monkeypatch.setattr(build, "IDS", at_once)
        for since in (0, 10, 30):
            ids = rng.integers(0, 2**64, 40, np.uint64)
            build.refuse_equal_ids(ids, since, {}, tmp_path, tmp_path)
            old, new = sorted(rng.choice(40, 2, replace=False).tolist())
            ids[new] = ids[old]
            if new < since:
                build.refuse_equal_ids(ids, since, {}, tmp_path, tmp_path)  # both were there before
                continue
            with pytest.raises(ShardError, match=rf"same clip id: {old} and {new}\."):
                build.refuse_equal_ids(ids, since, {}, tmp_path, tmp_path)
