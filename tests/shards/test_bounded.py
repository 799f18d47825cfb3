"""Memory of building, opening and describing an index does not grow with its clips."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gamut.remote import pages
from gamut.shards import Index, adopt, batching, build, check, doubles, show, statistics
from gamut.shards.foreign import Found, Taking
from gamut.shards.heard import Heard
from gamut.shards.labels import Labels
from gamut.shards.part import Part
from gamut.shards.tars import Tars

A_SHARD = 2000


def parts(clips: int) -> Iterator[Part]:
    """Of a set without tars: each clip's checksum and length follow from its number."""
    for number in range(clips // A_SHARD):
        yield part(number)


def part(number: int) -> Part:
    """A shard of it."""
    rows = range(number * A_SHARD, (number + 1) * A_SHARD)
    made = Part(f"shard-{number:06d}.tar", 2, number, "set", key=[f"clip-{row:07d}" for row in rows])
    made.offset, made.bytes = [1] * A_SHARD, [1] * A_SHARD
    made.samples = [400 + row * 7919 % 100_003 for row in rows]
    made.clip_checksum = [row * 0x9E3779B97F4A7C15 % 2**64 for row in rows]
    made.labels, made.columns = [[row % 50, row % 7] for row in rows], {"split": [row % 2 for row in rows]}
    return made


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


@pytest.mark.long
def test_four_times_the_third_party_tars_take_the_memory_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without folds, of which the clips' hashes are held at once."""
    for module, name in ((build, "IDS"), (check, "ROWS"), (doubles, "AT_ONCE"), (pages, "_BLOCK")):
        monkeypatch.setattr(module, name, 1 << 11)

    def scanned(file: object, name: str, taking: Taking) -> Found:
        made = part(int(name.removesuffix(".tar")))
        labels = [Labels((f"class {first}",)) for first, _ in made.labels]
        made.shard, made.labels, made.columns, made.codec = name, [], {}, ["wav"] * A_SHARD
        return Found(made, labels, [[] for _ in labels], ignored={".jpg members": 2})

    monkeypatch.setattr(adopt, "scan_foreign", scanned)
    found = []
    for tars in (1, 2, 8):  # the first warms up
        folder = tmp_path / str(tars)
        folder.mkdir()
        for number in range(tars):
            (folder / f"{number:06d}.tar").write_bytes(b"ab")
        given = Tars.find(str(folder)), folder, Taking("set", fast=True)
        found.append(peak(partial(adopt.adopt, *given, folds=0)))
        told = json.loads((folder / "index" / "quarantine.json").read_text())
        assert told["ignored"] == {".jpg members": 2 * tars}
        index = Index.open(folder)
        assert (len(index), len(index.labels)) == (tars * A_SHARD, 50)
    # What was held of all clips had 600 bytes of each.
    assert found[2] < found[1] + 500_000, f"{found[1]:,} bytes, then {found[2]:,}"


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
