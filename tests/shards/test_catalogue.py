"""The catalogue of a large set gives what its table would: the same clips, weights and draws, from mapped columns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.data.ahead import received
from gamut.errors import ShardError
from gamut.plan import Catalogue, Clips, Held, Policy, plan_fingerprint
from gamut.plan.blocks import plan_in_blocks
from gamut.shards import Index
from gamut.shards.catalogue import Chosen, Indexed
from gamut.shards.joined import Joined
from gamut.shards.select import select
from tests.close import assert_close

from .test_select import CLASSES, made

POLICY = Policy(packs=2, tokens=600, max_clips=4, block=8)
SUBSETS = [
    {},
    {"fold": [1, 3]},
    {"label": ["dog", 2]},
    {"fold?": [2], "label": ["bell"]},
    {"share": 0.4, "seed": 3},
    {"label": ["bell"], "share": 0.5},
    {"per_class": 7},
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return large(tmp_path_factory.mktemp("one") / "set", 150, "set")


@pytest.fixture(scope="module")
def joined(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Joined(
        [index, large(tmp_path_factory.mktemp("two") / "set", 90, "other", ["rain", "siren", "bell", "wind"])]
    )


def large(folder: Path, clips: int, name: str, classes: list[str] = CLASSES) -> Index:
    """An index without tars of clips of a third of a second and more with up to two labels."""
    rng = np.random.default_rng(clips)
    labels = [rng.choice(4, rng.integers(0, 3), replace=False, p=[0.6, 0.2, 0.15, 0.05]).tolist() for _ in range(clips)]
    made(folder, labels, name, classes, fold=(rng.integers(1, 4, clips)).tolist())
    np.save(folder / "index" / "samples.npy", rng.integers(5000, 60_000, clips))
    return Index.open(folder, tars=False, intact=False)


def both(index: Index, subset: dict, weights: str = "") -> tuple[Clips, Catalogue]:
    table, catalogue = select(index, subset, weights), select(index, subset, weights, POLICY)
    assert isinstance(catalogue, Indexed)
    return table, catalogue


@pytest.mark.parametrize("at_once", [64, 1 << 22])
@pytest.mark.parametrize("weights", ["", "balanced"])
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_it_has_the_clips_and_weights_of_the_table(
    index: Index, joined: Index, sets: int, subset: dict, weights: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gamut.shards.catalogue.AT_ONCE", at_once)
    table, catalogue = both(joined if sets == 2 else index, subset, weights)
    assert len(catalogue) == len(table)
    every = catalogue.select(np.arange(len(table)))
    for name in every.types():
        assert np.array_equal(getattr(every, name), getattr(table, name)), name
    held = Held(table)
    some = np.array([len(table) - 1, 0, 3, 3])
    assert np.array_equal(catalogue.lengths(some), held.lengths(some))
    there = np.flatnonzero(catalogue.counts)
    assert catalogue.counts[there].tolist() == held.counts.tolist()
    assert (catalogue.source is None) == (sets == 1)
    if weights:
        assert catalogue.mass is not None
        assert held.mass is not None
        assert_close(catalogue.mass[there], held.mass)
        found = [catalogue.weights(*catalogue.first[shard : shard + 2].tolist()) for shard in there]
        assert_close(np.concatenate(found), table.weight)


@pytest.mark.parametrize("weights", ["", "balanced"])
@pytest.mark.parametrize("sets", [1, 2])
def test_its_plans_are_those_of_the_table(index: Index, joined: Index, sets: int, weights: str) -> None:
    """Where shards are not shuffled: their order is that of their numbers, which are other ones in a table."""
    table, catalogue = both(joined if sets == 2 else index, {"fold": [1, 2]}, weights)
    policy = Policy(
        packs=2, tokens=600, max_clips=4, block=8, shuffle=False, mixup=0.5, proportions=(1.0, 2.0) * (sets == 2)
    )
    for epoch in range(2):
        one, two = (plan_in_blocks(some, 0, epoch, policy) for some in (Held(table), catalogue))
        assert len(one) == len(two) > 2
        for mine, theirs in zip(one, two):
            for name in ("row", "clip_id", "draw", "start", "pack_offset", "partner"):
                assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.mark.parametrize("weights", ["", "balanced"])
def test_another_process_gets_the_same(index: Index, joined: Index, weights: str) -> None:
    """And no column of clips goes there: they are mapped again."""
    for of, subset in ((index, {}), (index, {"fold": [1, 2]}), (joined, {"label": ["bell"]})):
        _, catalogue = both(of, subset, weights)
        told, arrays = catalogue.sent()
        assert max(len(array) for array in arrays.values()) <= len(catalogue.first)
        there = received(json.loads(json.dumps(told)), arrays)
        assert isinstance(there, Catalogue)
        policy = Policy(packs=2, tokens=600, max_clips=4, block=8, proportions=(1.0, 1.0) * (of is joined))
        assert plan_fingerprint(there, 0, policy) == plan_fingerprint(catalogue, 0, policy)
        for mine, theirs in zip(plan_in_blocks(catalogue, 0, 1, policy), plan_in_blocks(there, 0, 1, policy)):
            assert np.array_equal(mine.row, theirs.row)
            assert np.array_equal(mine.start, theirs.start)


def test_its_fingerprint_tells_subsets_weights_and_sets_apart(index: Index, joined: Index) -> None:
    prints = {
        json.dumps(plan_fingerprint(select(of, subset, weights, POLICY), 0, POLICY))
        for of in (index, joined)
        for subset in ({}, {"fold": [1]}, {"fold": [2]})
        for weights in ("", "balanced")
    }
    assert len(prints) == 12


def test_few_clips_of_a_large_set_are_a_table(index: Index) -> None:
    few = select(index, {"fold": [1], "label": ["wind"]}, "", POLICY)
    assert isinstance(few, Clips)
    assert 0 < len(few) < 16
    assert np.array_equal(few.row, select(index, {"fold": [1], "label": ["wind"]}).row)
    assert isinstance(select(index, {}, "", Policy(packs=1, clips=1)), Clips)


@pytest.mark.parametrize(
    ("subset", "weights", "said"),
    [
        ({"fold": [9]}, "", "selects no clip"),
        ({"label": ["bark"]}, "", "no label 'bark'"),
        ({"split": ["train"]}, "", "no column split"),
    ],
)
def test_what_cannot_be_is_said_as_of_a_small_set(index: Index, subset: dict, weights: str, said: str) -> None:
    for policy in (None, POLICY):
        with pytest.raises(ShardError, match=said):
            select(index, subset, weights, policy)


def test_a_file_of_weights(index: Index, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("".join(f"k{row},{row % 5}\n" for row in range(len(index))))
    table, catalogue = both(index, {"fold": [1, 2]}, str(file))
    assert len(catalogue) == len(table)
    assert catalogue.mass is not None
    there = np.flatnonzero(catalogue.counts)
    assert_close(catalogue.mass[there], Held(table).mass)
    assert np.array_equal(catalogue.select(np.arange(len(table))).row, table.row)


@settings(max_examples=60)
@given(chosen=st.lists(st.booleans(), min_size=1, max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5))
def test_chosen_rows_are_found_by_place_and_counted(chosen: list[bool], cuts: list[int]) -> None:
    mask, n = np.array(chosen), len(chosen)
    some = Chosen.of(iter(np.split(mask, sorted(min(cut, n) for cut in cuts))), n)
    rows = np.flatnonzero(mask)
    assert len(some) == len(rows)
    assert np.array_equal(some.rows(np.arange(len(rows))), rows)
    edges = np.arange(n + 1)
    assert np.array_equal(some.up_to(edges), np.searchsorted(rows, edges))
    first = n // 3
    assert np.array_equal(some.mask(first, n), mask[first:])
    assert np.array_equal(Chosen.among(rows, n).words, some.words)
