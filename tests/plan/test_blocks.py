"""What must hold of an epoch that is planned in blocks: all that holds of one planned whole, over the borders too."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, kstest

from gamut.errors import PlanError
from gamut.plan import Clips, Epoch, Policy, differing, plan_epoch, plan_fingerprint
from gamut.plan.ascending import PIECE, Ascending
from gamut.plan.blocks import Border, block_count, draw_block, first_plan, plan_block, plan_in_blocks, set_parts
from gamut.plan.catalogue import Held, in_blocks
from gamut.plan.draws import set_draws

from .test_draws import cases, table, weighted
from .test_epoch import assert_partners_fit, consumed, policies, same


def draws_of(plans: list[Epoch]) -> Counter:
    return Counter((clip, draw) for plan in plans for clip, draw in zip(plan.clip_id.tolist(), plan.draw.tolist()))


def drawn(clips: Clips, seed: int, epoch: int, policy: Policy, blocks: int) -> Counter:
    parts = [draw_block(Held(clips), seed, epoch, policy, block, blocks) for block in range(blocks)]
    return Counter((place, draw) for part in parts for place, draw in zip(part.place.tolist(), part.draw.tolist()))


@settings(max_examples=80)
@given(
    n=st.integers(1, 250),
    policy=policies(),
    packs=st.integers(1, 6),
    block=st.integers(1, 100),
    seed=st.integers(0, 9),
    number=st.integers(0, 3),
)
def test_every_clip_once_and_every_step_but_the_last_is_full(
    make_clips, n: int, policy: Policy, packs: int, block: int, seed: int, number: int
) -> None:
    policy = replace(policy, packs=packs, block=block)
    clips = make_clips(n, seed)
    plans = plan_in_blocks(Held(clips), seed, number, policy)
    assert len(plans) == block_count(Held(clips), policy)
    assert sorted(np.concatenate([plan.row for plan in plans]).tolist()) == list(range(n))
    steps = draws = 0
    for at, plan in enumerate(plans):
        assert (plan.number, plan.block, plan.blocks, plan.draws) == (number, at, len(plans), n)
        assert (plan.first_step, plan.first_draw) == (steps, draws)
        assert plan.draws_before(plan.first_step) == draws
        in_pack = np.diff(plan.pack_offset)
        assert len(in_pack) == plan.steps * packs
        assert plan.last == (at == len(plans) - 1)
        assert plan.last or (in_pack > 0).all()
        if policy.clips is not None:
            assert plan.last or (in_pack == policy.clips).all()
            assert plan.forecast() == (*(-(-n // (policy.clips * packs)),) * 3, True)
        else:
            assert policy.tokens is not None
            assert in_pack.max(initial=0) <= policy.max_clips
            assert plan.pack_tokens.max(initial=0) <= policy.tokens
        assert (plan.draw == 0).all()
        assert np.array_equal(plan.clip_id, clips.clip_id[plan.row])
        assert_partners_fit(clips, plan)
        steps, draws = steps + plan.steps, draws + len(plan.row)
        assert (plan.end, plan.draws_before(plan.end)) == (steps, draws)
    assert plans[-1].forecast() == (steps, steps, steps, True)
    if policy.clips is not None:
        sizes = np.concatenate([np.diff(plan.pack_offset) for plan in plans])
        assert np.count_nonzero((sizes > 0) & (sizes < policy.clips)) <= 1


@settings(max_examples=80)
@given(case=cases(), epoch=st.integers(0, 5), seed=st.integers(0, 3), blocks=st.integers(1, 9))
def test_the_draws_of_an_epoch_are_the_same_however_many_blocks_there_are(
    make_clips, case, epoch: int, seed: int, blocks: int
) -> None:
    n, weights, sets, policy = case
    clips = table(make_clips, n, weights, sets)
    whole = drawn(clips, seed, epoch, policy, 1)
    assert drawn(clips, seed, epoch, policy, blocks) == whole
    assert max(whole.values()) == 1  # the copies of a clip have different numbers
    assert whole.total() == (n if policy.draws is None else policy.draws)
    assert set_parts(Held(clips), policy) == set_draws(clips, policy)
    if sets > 1:
        assert clips.source is not None
        per_set = np.bincount(clips.source[[place for place, _ in whole]], minlength=sets)
        assert per_set.tolist() == set_draws(clips, policy)


@settings(max_examples=40)
@given(
    case=cases(),
    packs=st.integers(1, 3),
    max_clips=st.integers(1, 4),
    block=st.integers(1, 60),
    world=st.sampled_from([2, 3, 4]),
)
def test_blocks_of_any_draws_have_them_all_and_the_same_on_any_number_of_ranks(
    make_clips, case, packs: int, max_clips: int, block: int, world: int
) -> None:
    n, weights, sets, policy = case
    clips = table(make_clips, n, weights, sets)
    policy = replace(policy, packs=packs, max_clips=max_clips, block=block)
    held = Held(clips)
    plans = plan_in_blocks(held, 0, 2, policy)
    by_id = Counter({(int(clips.clip_id[place]), draw): 1 for place, draw in drawn(clips, 0, 2, policy, len(plans))})
    assert draws_of(plans) == by_id
    for plan in plans:
        assert_partners_fit(clips, plan)
        for step in range(plan.steps):
            assert consumed(plan, step, 1, 1) == consumed(plan, step, world, 2)


@settings(max_examples=30)
@given(case=cases(), block=st.integers(1, 60), data=st.data())
def test_a_block_needs_the_border_before_it_alone(make_clips, case, block: int, data: st.DataObject) -> None:
    n, weights, sets, policy = case
    policy = replace(policy, packs=2, max_clips=2, block=block)
    clips = table(make_clips, n, weights, sets)
    blocks = block_count(Held(clips), policy)
    at = data.draw(st.integers(0, blocks - 1))
    border = Border()
    for number in range(at):
        _, border = plan_block(Held(clips), 0, 1, policy, number, border)
    again, after = plan_block(Held(table(make_clips, n, weights, sets)), 0, 1, policy, at, border)
    once = plan_in_blocks(Held(clips), 0, 1, policy)
    assert same(once[at], again)
    assert again.fingerprint == once[at].fingerprint
    if again.last:
        assert not len(after.place)


@settings(max_examples=40)
@given(n=st.integers(8, 60), draws=st.integers(8, 200), epochs=st.integers(1, 8))
def test_without_weights_every_clip_comes_equally_often_however_long_an_epoch_is(
    make_clips, n: int, draws: int, epochs: int
) -> None:
    clips, policy = make_clips(n), Policy(packs=1, clips=1, draws=draws)
    times = np.zeros(n, np.int64)
    for epoch in range(epochs):
        part = np.bincount([place for place, _ in drawn(clips, 3, epoch, policy, 4)], minlength=n)
        assert part.sum() == draws
        times += part
        assert times.max() - times.min() <= 1


def test_blocks_draw_by_weight(make_clips) -> None:
    clips = weighted(make_clips(300, shards=30))
    epochs, policy = 40, Policy(packs=1, clips=1, draws=2500)
    held, times = Held(clips), np.zeros(300, np.int64)
    by_shard = np.zeros((epochs, len(held.counts)))
    for epoch in range(epochs):
        for block in range(5):
            times += np.bincount(draw_block(held, 11, epoch, policy, block, 5).place, minlength=300)
        by_shard[epoch] = np.add.reduceat(times, held.first[:-1]) - by_shard[:epoch].sum(0)
    assert clips.weight is not None
    expected = clips.weight / clips.weight.sum() * epochs * 2500
    rare = expected < 5
    seen, wanted = np.append(times[~rare], times[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    assert chisquare(seen, wanted).pvalue > 0.001
    # Draws are independent: those of a shard vary from epoch to epoch as much as a multinomial does.
    share = held.mass / held.mass.sum()
    spread = ((by_shard - 2500 * share) ** 2 / (2500 * share * (1 - share))).mean()
    assert 0.8 < spread < 1.2


def test_a_clip_without_weight_is_never_drawn(make_clips) -> None:
    weight = np.zeros(50)
    weight[[7, 31]] = 1.0, 3.0
    some = drawn(replace(make_clips(50), weight=weight), 0, 0, Policy(packs=1, clips=1, draws=4000), 7)
    counts = np.bincount([place for place, _ in some], minlength=50)
    assert np.flatnonzero(counts).tolist() == [7, 31]
    assert 0.7 < counts[31] / 4000 < 0.8


@pytest.mark.parametrize("numbers", [0, 1, 5000, 3 * PIECE + 17])
def test_ascending_numbers_are_independent_uniform_ones_sorted(numbers: int) -> None:
    some = Ascending(numbers, 3, 1)
    all_of_them = some.stretch(0, numbers)
    assert len(all_of_them) == numbers
    assert (np.diff(all_of_them) >= 0).all()
    assert numbers < 2 or kstest(all_of_them, "uniform").pvalue > 1e-4
    for begin, end in ((0, numbers // 3), (numbers // 3, numbers // 2), (numbers // 2, numbers)):
        assert np.array_equal(some.stretch(begin, end), all_of_them[begin:end])


def test_how_many_ascending_numbers_lie_below_a_half_is_binomial() -> None:
    numbers = 2 * PIECE
    below = [int(Ascending(numbers, seed).before[len(Ascending(numbers, seed).before) // 2]) for seed in range(60)]
    assert binomtest(sum(below), numbers * 60, 0.5).pvalue > 1e-4
    assert 0.5 < np.var(below) / (numbers / 4) < 1.7


def test_partners_are_of_the_whole_set(make_clips) -> None:
    clips = replace(make_clips(24, shards=6), samples=np.full(24, 16000))
    policy = Policy(packs=2, clips=1, mixup=1.0, block=8)
    pairs = np.zeros((24, 24))
    for number in range(250):
        for plan in plan_in_blocks(Held(clips), 0, number, policy):
            np.add.at(pairs, (plan.row, plan.partner), 1)
    assert (pairs.diagonal() == 0).all()
    assert chisquare(pairs[~np.eye(24, dtype=bool)]).pvalue > 1e-4


def test_shards_are_streamed_by_one_lane_also_over_borders(make_clips) -> None:
    """Every cut, between two blocks or two lanes, is within one shard at most, and what a block leaves stays where it
    is: a node reads no shard that it would not read anyway."""
    clips = make_clips(4000, low=0.3, shards=200)
    policy = Policy(packs=8, tokens=1300, window=50, lookahead=8, locality="node", block=1000)
    met: Counter = Counter()
    plans = plan_in_blocks(Held(clips), 0, 0, policy)
    assert len(plans) == 4
    for plan in plans:
        lane = np.repeat(np.tile(np.arange(8), plan.steps), np.diff(plan.pack_offset))
        for number in range(8):
            met.update((number, shard) for shard in set(clips.shard[plan.row[lane == number]].tolist()))
    shards = len(set(clips.shard.tolist()))
    assert len(met) - shards <= 4 * 8  # lanes that meet a shard: its own, and another for each cut


@pytest.mark.parametrize("packer", ["exact", "next_fit"])
@pytest.mark.parametrize("seed", range(4))
def test_borders_waste_no_packs(make_clips, packer: str, seed: int) -> None:
    clips = make_clips(20_000, seed, low=4.0, shards=100)
    policy = Policy(packs=64, tokens=2048, packer=packer, block=2500)
    plans = plan_in_blocks(Held(clips), 0, 0, policy)
    assert len(plans) == 4  # 64 packs of up to 64 clips: a step of these fits into each
    tokens = sum(int(plan.pack_tokens.sum()) for plan in plans)
    filled = sum(np.count_nonzero(np.diff(plan.pack_offset)) for plan in plans)
    whole = plan_epoch(clips, 0, 0, policy).summary()
    ends = 4 * 16 * (packer == "next_fit")  # of lanes, which cannot put them together
    assert filled <= whole["packs"] + ends
    assert 1 - tokens / (filled * 2048) <= whole["padding"] + ends / filled
    steps = plans[-1].end
    assert steps <= whole["steps"]
    for plan in plans[:-1]:
        forecast = plan.forecast()
        assert not forecast.exact
        assert forecast.low <= steps <= forecast.high
        assert abs(forecast.steps - steps) <= 0.02 * steps


def test_epochs_and_blocks_differ_and_each_crops_anew(make_clips) -> None:
    clips = make_clips(400, low=2.0)
    policy = Policy(packs=2, clips=3, crop_frames=96, block=50)
    orders = [
        np.concatenate([plan.row for plan in plan_in_blocks(Held(clips), seed, epoch, policy)])
        for seed in range(2)
        for epoch in range(2)
    ]
    for i, one in enumerate(orders):
        assert not any(np.array_equal(one, two) for two in orders[:i])
    unshuffled = plan_in_blocks(Held(clips), 0, 1, replace(policy, shuffle=False, packs=1, crop_frames=48))
    assert np.concatenate([plan.row for plan in unshuffled]).tolist() == list(range(400))


def test_a_set_is_planned_in_blocks_where_it_or_its_draws_fill_two(make_clips) -> None:
    policy = Policy(packs=1, clips=1, block=100)
    assert [in_blocks(n, policy) for n in (0, 199, 200)] == [False, False, True]
    assert in_blocks(5, replace(policy, draws=200))
    assert in_blocks(200, replace(policy, draws=5))
    clips = make_clips(200)
    assert "block" not in plan_fingerprint(clips, 0, policy)
    one, two = (plan_fingerprint(Held(clips), 0, replace(policy, block=block)) for block in (100, 50))
    assert differing(one, two) == ["block (100, now 50)"]
    heavier = plan_fingerprint(Held(weighted(clips)), 0, policy)
    assert [text.split()[0] for text in differing(one, heavier)] == ["weights"]


def test_a_run_begins_with_the_first_step_there_is(make_clips) -> None:
    clips = make_clips(400, low=2.0)
    for policy in (
        Policy(packs=8, clips=4, block=1),  # 12 blocks of 33: the first one keeps its last packs back
        Policy(packs=8, clips=4, block=100),
        Policy(packs=8, clips=4),
    ):
        first = first_plan(clips, 0, policy)
        assert first.steps > 0
        assert first.first_step == 0
        if in_blocks(400, policy):
            assert same(first, next(plan for plan in plan_in_blocks(Held(clips), 0, 0, policy) if plan.steps))
        else:
            assert same(first, plan_epoch(clips, 0, 0, policy))


def test_a_set_without_clips_and_one_that_is_never_drawn_are_refused(make_clips) -> None:
    policy = Policy(packs=1, clips=1)
    with pytest.raises(PlanError, match="no clips to plan"):
        plan_in_blocks(Held(make_clips(0)), 0, 0, policy)
    two = replace(make_clips(4), source=np.array([0, 0, 1, 1]))
    with pytest.raises(PlanError, match="gets none of the 3 draws"):
        plan_in_blocks(Held(two), 0, 0, replace(policy, draws=3, proportions=(100.0, 1.0)))
