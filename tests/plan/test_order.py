from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.plan import Policy
from gamut.plan.order import block_bounds, clip_keys, lane_bounds, sequence, shuffle_blocks


def in_lanes(clips, seed: int, epoch: int, policy: Policy) -> list[np.ndarray]:
    """Each lane's clips in order, with a token a sample."""
    keys = clip_keys(clips, seed, epoch)
    order = sequence(clips, keys, seed, epoch, policy)
    bounds = lane_bounds(clips.samples[order], policy, policy.lanes)
    shuffled = shuffle_blocks(order, keys, block_bounds(bounds, policy.window))
    return [shuffled[first:last] for first, last in pairwise(bounds)]


@settings(max_examples=60)
@given(n=st.integers(1, 300), window=st.integers(1, 400), packs=st.integers(1, 40), seed=st.integers(0, 99))
def test_lanes_hold_every_clip_once_and_equal_tokens(make_clips, n: int, window: int, packs: int, seed: int) -> None:
    clips = make_clips(n, seed)
    lanes = in_lanes(clips, seed, 0, Policy(packs=packs, tokens=10**7, window=window))
    assert sorted(np.concatenate(lanes).tolist()) == list(range(n))
    tokens = np.array([clips.samples[lane].sum() for lane in lanes])
    assert np.abs(tokens - clips.samples.sum() / len(lanes)).max() <= clips.samples.max()


@settings(max_examples=60)
@given(n=st.integers(1, 300), per_pack=st.integers(1, 9), packs=st.integers(1, 40))
def test_lanes_of_packs_of_so_many_clips_hold_equally_many_whole_packs(
    make_clips, n: int, per_pack: int, packs: int
) -> None:
    lanes = in_lanes(make_clips(n), 0, 0, Policy(packs=packs, clips=per_pack))
    in_packs = [-(-len(lane) // per_pack) for lane in lanes]
    assert max(in_packs) - min(in_packs) <= 1
    assert sum(in_packs) == -(-n // per_pack)  # one short pack at most


def test_a_lane_streams_its_shards_once_front_to_back(make_clips) -> None:
    clips = make_clips(4000, shards=40)
    policy = Policy(packs=8, tokens=10**7, window=50)
    orders = []
    for epoch in range(2):
        order = sequence(clips, clip_keys(clips, 0, epoch), 0, epoch, policy)
        shards = clips.shard[order]
        met = shards[np.flatnonzero(np.diff(shards, prepend=-1))].tolist()
        assert sorted(met) == list(range(40))  # each once
        for shard in met:
            assert (np.diff(order[shards == shard]) == 1).all()  # front to back
        moved = np.empty(4000, np.int64)
        moved[np.concatenate(in_lanes(clips, 0, epoch, policy))] = np.arange(4000)
        assert np.abs(moved[order] - np.arange(4000)).max() < 50  # shuffled within the window and no further
        assert np.abs(moved[order] - np.arange(4000)).mean() > 10
        orders.append(met)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_a_set_smaller_than_the_window_is_permuted_altogether(make_clips) -> None:
    clips = make_clips(2000, shards=10)
    lanes = in_lanes(clips, 0, 0, Policy(packs=4, tokens=10**7, window=2000))
    for lane in lanes:
        counts = np.bincount(clips.shard[lane], minlength=10)
        assert counts.min() > 0
        assert counts.max() < 2 * len(lane) / 10
    where = np.empty(2000)
    where[np.concatenate(lanes)] = np.arange(2000)
    assert abs(np.corrcoef(where, np.arange(2000))[0, 1]) < 0.1


def test_without_shuffling_the_order_is_the_index(make_clips) -> None:
    clips = make_clips(100)
    order = sequence(clips, clip_keys(clips, 0, 0), 0, 0, Policy(packs=4, clips=3, shuffle=False))
    assert order.tolist() == list(range(100))


@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(1, 60))
def test_blocks_are_equal_and_no_larger_than_the_window(sizes: list[int], window: int) -> None:
    lanes = np.concatenate([[0], np.cumsum(sizes)])
    for size, first, bounds in zip(sizes, lanes[:-1], block_bounds(lanes, window)):
        assert bounds[0] == first
        assert bounds[-1] == first + size
        blocks = np.diff(bounds)
        assert blocks.max() <= window
        assert blocks.max() - blocks.min() <= 1
