from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gamut.errors import PlanError
from gamut.plan import Policy, deal, plan_epoch
from gamut.plan.balance import forwards

costs = st.lists(st.floats(0, 1e4), min_size=1, max_size=70).map(np.array)


@given(costs, st.integers(1, 9), st.integers(1, 5))
def test_every_pack_is_dealt_once_in_as_many_forwards(cost: np.ndarray, world: int, per_forward: int) -> None:
    dealt = deal(cost, world, per_forward)
    assert dealt.shape == (world, -(-len(cost) // (world * per_forward)), per_forward)
    assert dealt.dtype == np.int64
    assert sorted(dealt[dealt >= 0].tolist()) == list(range(len(cost)))
    assert (dealt == -1).sum() == dealt.size - len(cost)
    for rank in dealt.reshape(world, -1):
        mine = cost[rank[rank >= 0]]
        assert (np.diff(mine) <= 0).all()  # costliest first
        assert (rank[len(mine) :] == -1).all()  # empty places last
    assert np.array_equal(dealt, deal(cost.copy(), world, per_forward))


@given(costs, st.integers(1, 5), st.integers(1, 4))
def test_neighbours_share_a_forward_at_any_number_of_ranks(cost: np.ndarray, world: int, per_forward: int) -> None:
    def joined(ranks: int) -> list[tuple[int, ...]]:
        dealt = deal(cost, ranks, per_forward, neighbours=True)
        run = forwards(cost, ranks, per_forward, neighbours=True)
        assert dealt.shape == deal(cost, ranks, per_forward).shape
        assert not np.asarray(cost)[dealt[:, run:][dealt[:, run:] >= 0]].any()
        return sorted(
            tuple(forward[forward >= 0].tolist()) for forward in dealt.reshape(-1, per_forward) if forward.max() >= 0
        )

    assert joined(world) == joined(1)
    assert sum(joined(world), ()) == tuple(range(len(cost)))


@given(costs, st.integers(1, 9))
def test_no_rank_is_more_than_the_costliest_pack_ahead_of_another_that_had_room(cost: np.ndarray, world: int) -> None:
    dealt = deal(cost, world, 1)[:, :, 0]
    load = np.array([cost[rank[rank >= 0]].sum() for rank in dealt])
    with_room = load[(dealt == -1).any(1)]
    if len(with_room):
        assert load.max() <= with_room.min() + cost.max() + 1e-6


def test_ranks_have_equal_cost_where_packs_differ(make_clips) -> None:
    clips = make_clips(30000, low=0.5, high=30.0)
    policy = Policy(packs=1024, tokens=4096, packer="next_fit", class_token=False)
    epoch = plan_epoch(clips, 0, 0, policy)
    cost = epoch.pack_cost[: epoch.packs]
    load = np.array([cost[rank].sum() for rank in deal(cost, 64, 4)])
    assert load.max() / load.mean() - 1 <= 0.005
    blind = cost.reshape(64, 16).sum(1)
    assert blind.max() / blind.mean() - 1 > 0.01


def test_equal_packs_are_dealt_in_turn() -> None:
    assert deal(np.full(8, 3.0), 2, 2).tolist() == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


def test_nodes_keep_the_packs_of_their_lanes() -> None:
    cost = np.random.default_rng(0).uniform(1, 2, 48)
    dealt = deal(cost, 6, 2, nodes=3)
    assert dealt.shape == (6, 4, 2)
    for node in range(3):
        mine = dealt[2 * node : 2 * node + 2]
        assert sorted(mine[mine >= 0].tolist()) == list(range(16 * node, 16 * node + 16))
    for nodes, world in ((5, 10), (3, 4)):
        with pytest.raises(PlanError, match=f"{nodes} nodes"):
            deal(cost, world, 1, nodes=nodes)


def test_cost_is_tokens_and_the_squares_of_the_segments(make_clips) -> None:
    policy = Policy(packs=4, clips=3, views=2, crop_frames=96, pad=False)
    epoch = plan_epoch(make_clips(40), 0, 0, policy)
    for pack in range(epoch.steps * epoch.packs):
        draws = slice(epoch.pack_offset[pack], epoch.pack_offset[pack + 1])
        segments = epoch.frames[draws].reshape(-1) // 16 * 8 + 1
        assert epoch.pack_tokens[pack] == segments.sum()
        assert epoch.pack_cost[pack] == pytest.approx(segments.sum() + (segments.astype(float) ** 2).sum() / 4608)
