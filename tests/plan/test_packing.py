from __future__ import annotations

import doctest
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.plan import packing
from gamut.plan.packing import Packed, exact_fill, next_fit

BUDGET = 40
tokens_of = st.lists(st.integers(1, BUDGET), max_size=60).map(lambda t: np.array(t, np.int64))


def packs_of(packed: Packed) -> list[list[int]]:
    ends = np.cumsum(packed.counts)
    return [packed.order[end - size : end].tolist() for end, size in zip(ends, packed.counts)]


def slow_next_fit(tokens: list[int], budget: int, max_clips: int) -> list[list[int]]:
    packs: list[list[int]] = []
    for clip, size in enumerate(tokens):
        full = not packs or len(packs[-1]) == max_clips or sum(tokens[c] for c in packs[-1]) + size > budget
        packs = [*packs, [clip]] if full else [*packs[:-1], [*packs[-1], clip]]
    return packs


def slow_pool(waiting: list[int], tokens: list[int], budget: int, max_clips: int, lookahead: int) -> list[int]:
    fits = 0
    while fits < min(max_clips, len(waiting)) and sum(tokens[c] for c in waiting[: fits + 1]) <= budget:
        fits += 1
    return waiting[: max(fits + lookahead, fits + 1 if fits < max_clips else fits)]


def slow_exact(tokens: list[int], budget: int, lookahead: int) -> list[list[int]]:
    """Try every subset of the pool; of the fullest take the one whose newest clip is oldest, and so on down."""
    waiting, packs = list(range(len(tokens))), []
    while waiting:
        first, *rest = slow_pool(waiting, tokens, budget, len(tokens) + 1, lookahead)
        room = budget - tokens[first]
        subsets = [s for k in range(len(rest) + 1) for s in combinations(rest, k) if sum(tokens[c] for c in s) <= room]
        best = min(subsets, key=lambda s: (-sum(tokens[c] for c in s), s[::-1]))
        packs.append([first, *best])
        waiting = [c for c in waiting if c not in packs[-1]]
    return packs


@given(tokens_of, st.integers(1, 6))
def test_next_fit_is_the_papers_packing(tokens: np.ndarray, max_clips: int) -> None:
    assert packs_of(next_fit(tokens, BUDGET, max_clips)) == slow_next_fit(tokens.tolist(), BUDGET, max_clips)


@settings(max_examples=150)
@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 8), st.integers(1, 3))
def test_exact_fill_finds_what_trying_every_subset_finds(tokens: list[int], lookahead: int, unit: int) -> None:
    packed = exact_fill(np.array(tokens, np.int64) * unit, 20 * unit + unit - 1, 100, lookahead)
    assert packs_of(packed) == slow_exact(tokens, 20, lookahead)


@given(tokens_of, st.integers(1, 6), st.integers(1, 20))
def test_exact_fill_loses_starves_and_overfills_nothing(tokens: np.ndarray, max_clips: int, lookahead: int) -> None:
    packed = exact_fill(tokens, BUDGET, max_clips, lookahead)
    assert len(packed.left) == 0
    waiting = list(range(len(tokens)))
    for pack in packs_of(packed):
        assert pack[0] == waiting[0]  # the oldest always goes: nobody waits longer than the queue before it
        assert 1 <= len(pack) <= max_clips
        assert sum(tokens[pack]) <= BUDGET
        assert pack == sorted(pack)
        assert set(pack) <= set(slow_pool(waiting, tokens.tolist(), BUDGET, max_clips, lookahead))
        waiting = [clip for clip in waiting if clip not in pack]
    assert waiting == []


@settings(max_examples=150)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=10), st.integers(1, 4))
def test_the_bound_on_clips_still_gives_the_fullest_pack(tokens: list[int], max_clips: int) -> None:
    lookahead = len(tokens)
    pack = packs_of(exact_fill(np.array(tokens), BUDGET, max_clips, lookahead))[0]
    room = BUDGET - tokens[0]
    best = max(
        total
        for k in range(max_clips)
        for s in combinations(tokens[1:], k)
        if (total := sum(s)) <= room
    )  # fmt: skip
    assert sum(tokens[c] for c in pack) == tokens[0] + best


@settings(max_examples=40)
@given(st.lists(st.integers(1, 200).map(lambda columns: 8 * columns + 1), min_size=1, max_size=12))
def test_a_large_pack_is_full_to_within_a_640th(tokens: list[int]) -> None:
    budget = 2048
    pack = packs_of(exact_fill(np.array(tokens), budget, 64, len(tokens)))[0]
    subsets = (s for k in range(len(tokens)) for s in combinations(tokens[1:], k))
    best = max(total for s in subsets if (total := tokens[0] + sum(s)) <= budget)
    assert best - budget // 640 <= sum(tokens[c] for c in pack) <= budget


@given(tokens_of, st.integers(1, 20))
def test_without_draining_the_waiting_clips_are_left_in_order(tokens: np.ndarray, lookahead: int) -> None:
    packed = exact_fill(tokens, BUDGET, 64, lookahead, drain=False)
    assert sorted([*packed.order.tolist(), *packed.left.tolist()]) == list(range(len(tokens)))
    assert packed.left.tolist() == sorted(packed.left.tolist())
    whole = exact_fill(tokens, BUDGET, 64, lookahead)
    assert packs_of(packed) == packs_of(whole)[: len(packed.counts)]


def voxceleb_like(n: int, class_token: int) -> np.ndarray:
    """Token counts of clips of 4 s and more, 8.2 s in the mean, cut at 30 s."""
    seconds = np.minimum(4 + np.random.default_rng(0).exponential(4.2, n), 30.0)
    frames = (1 + (np.round(seconds * 16000).astype(np.int64) - 400) // 160) // 16 * 16
    return frames // 16 * 8 + class_token


@pytest.mark.parametrize(("class_token", "limit"), [(0, 0.001), (1, 0.003)])
def test_exact_fill_wastes_next_to_nothing(class_token: int, limit: float) -> None:
    tokens = voxceleb_like(20000, class_token)
    exact, paper = exact_fill(tokens, 2048, 64, 64), next_fit(tokens, 2048, 64)
    assert 1 - tokens.sum() / (len(exact.counts) * 2048) <= limit
    assert 1 - tokens.sum() / (len(paper.counts) * 2048) > 0.1  # so there was something to win


def test_exact_fill_stays_close_to_the_order_of_arrival() -> None:
    tokens = voxceleb_like(20000, 0)
    packed = exact_fill(tokens, 2048, 64, 64)
    pack = np.repeat(np.arange(len(packed.counts)), packed.counts)
    waited = pack - packed.order / (len(tokens) / len(packed.counts))
    assert np.abs(waited).max() < 40  # packs
    late, early = packed.order[pack > pack[-1] // 2], packed.order[pack <= pack[-1] // 2]
    assert abs(tokens[late].mean() / tokens[early].mean() - 1) < 0.02  # no drift from long to short clips


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(packing) == (0, 2)


def test_tiny_clips_fill_a_pack_beyond_the_lookahead() -> None:
    packed = exact_fill(np.full(1000, 8), 2048, 512, 16)
    assert packed.counts.tolist() == [256, 256, 256, 232]
