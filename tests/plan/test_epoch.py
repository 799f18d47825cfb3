"""What must hold of a whole planned epoch, whatever the policy."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.errors import PlanError
from gamut.plan import Clips, Epoch, Policy, deal, plan_epoch, plan_evaluation
from gamut.plan.epoch import ARRAYS, OPTIONAL


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    views, local = draw(st.integers(1, 3)), draw(st.sampled_from([0, 0, 2]))
    by_clips = draw(st.booleans())
    return Policy(
        packs=draw(st.integers(1, 40)),
        clips=draw(st.integers(1, 6)) if by_clips else None,
        tokens=None
        if by_clips
        else draw(st.integers(views * 97 + local * 17, 1200)),  # 192 frames and a class token at least
        max_clips=draw(st.integers(1, 10)),
        views=views,
        crop_frames=draw(st.none() | st.sampled_from([16, 96, 192])),
        pad=draw(st.booleans()),
        max_frames=192,
        hops=draw(st.sampled_from([(160,), (160, 320, 640)])),
        class_token=draw(st.booleans()),
        packer=draw(st.sampled_from(["exact", "next_fit"])),
        lookahead=draw(st.integers(1, 64)),
        window=draw(st.sampled_from([1, 10, 50, 16384])),
        shuffle=draw(st.booleans()),
        locality=draw(st.sampled_from(["none", "node"])),
        pools=draw(st.sampled_from([(1,), (1,), (1, 2, 4)])),
        local_views=local,
        local_frames=32,
        roll=draw(st.sampled_from([0.0, 0.5])),
        drop_tokens=draw(st.sampled_from([0.0, 0.1])),
        mixup=draw(st.sampled_from([0.0, 0.5, 1.0])),
        max_samples=draw(st.sampled_from([None, 48000])),
    )


def same(one: Epoch, two: Epoch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ARRAYS | OPTIONAL)


def consumed(epoch: Epoch, step: int, world: int, per_forward: int) -> Counter:
    """What all ranks together take from a step, each going by what it is dealt."""
    first = step * epoch.packs
    taken: Counter = Counter()
    for rank in deal(epoch.pack_cost[first : first + epoch.packs], world, per_forward):
        for pack in rank[rank >= 0] + first:
            rows = slice(epoch.pack_offset[pack], epoch.pack_offset[pack + 1])
            taken.update(zip(epoch.clip_id[rows].tolist(), epoch.draw[rows].tolist()))
    return taken


def assert_partners_fit(clips: Clips, epoch: Epoch) -> None:
    """A partner is another clip of the set, and its part lies inside it and is no longer than what it is mixed with."""
    if epoch.partner is None:
        return
    assert epoch.partner_weight is not None
    assert epoch.partner_start is not None
    assert epoch.partner_length is not None
    mixed = epoch.partner >= 0
    assert (epoch.partner != epoch.row).all()
    assert (epoch.partner_weight[~mixed] == 1).all()
    assert ((epoch.partner_weight[mixed] > 0) & (epoch.partner_weight[mixed] < 1)).all()
    assert (epoch.partner_length[~mixed] == 0).all()
    samples = clips.samples[epoch.partner[mixed]][:, None]
    assert np.array_equal(epoch.partner_length[mixed], np.minimum(samples, epoch.length[mixed]))
    assert (epoch.partner_start >= 0).all()
    assert (epoch.partner_start[mixed] + epoch.partner_length[mixed] <= samples).all()


@settings(max_examples=100)
@given(n=st.integers(1, 250), policy=policies(), seed=st.integers(0, 9), number=st.integers(0, 3))
def test_every_clip_once_and_every_pack_within_its_bounds(
    make_clips, n: int, policy: Policy, seed: int, number: int
) -> None:
    clips = make_clips(n, seed)
    for epoch in (
        plan_epoch(clips, seed, number, policy),
        plan_evaluation(clips, replace(policy, hops=(160,), pools=(2,))),
    ):
        assert sorted(epoch.row.tolist()) == list(range(n))
        assert np.array_equal(epoch.clip_id, clips.clip_id[epoch.row])
        assert (epoch.draw == 0).all()
        assert len(epoch.pack_offset) == epoch.steps * policy.packs + 1
        assert (epoch.pack_offset[0], epoch.pack_offset[-1]) == (0, n)
        in_pack = np.diff(epoch.pack_offset)
        assert in_pack.min() >= 0
        if policy.clips is not None:
            assert in_pack.max() <= policy.clips
            assert np.count_nonzero((in_pack > 0) & (in_pack < policy.clips)) <= 1
            assert epoch.steps == -(-n // (policy.clips * policy.packs))
        else:
            assert policy.tokens is not None
            assert in_pack.max() <= policy.max_clips
            assert epoch.pack_tokens.max() <= policy.tokens
        by_pack = [epoch.tokens[a:b].sum() for a, b in zip(epoch.pack_offset[:-1], epoch.pack_offset[1:])]
        assert epoch.pack_tokens.tolist() == by_pack
        assert in_pack.reshape(epoch.steps, -1).sum(1).min() > 0  # no step without a clip
        assert {name: getattr(epoch, name).dtype for name in ARRAYS} == ARRAYS
        there = {name: getattr(epoch, name) for name in OPTIONAL if getattr(epoch, name) is not None}
        assert {name: array.dtype for name, array in there.items()} == {name: OPTIONAL[name] for name in there}
        assert_partners_fit(clips, epoch)


@settings(max_examples=40)
@given(n=st.integers(1, 250), policy=policies(), per_forward=st.integers(1, 5))
def test_a_step_has_the_same_clips_on_any_number_of_ranks(make_clips, n: int, policy: Policy, per_forward: int) -> None:
    epoch = plan_epoch(make_clips(n), 0, 0, policy)
    for step in range(epoch.steps):
        rows = slice(epoch.draws_before(step), epoch.draws_before(step + 1))
        planned = Counter(zip(epoch.clip_id[rows].tolist(), epoch.draw[rows].tolist()))
        assert all(consumed(epoch, step, world, per_forward) == planned for world in (1, 2, 3, 4))


@settings(max_examples=40)
@given(n=st.integers(1, 250), policy=policies(), data=st.data())
def test_resumed_at_any_step_it_is_as_if_never_stopped(make_clips, n: int, policy: Policy, data: st.DataObject) -> None:
    epoch = plan_epoch(make_clips(n), 0, 1, policy)
    at = data.draw(st.integers(0, epoch.steps))
    again = plan_epoch(make_clips(n), 0, 1, policy)  # by another process, on another number of ranks
    assert same(epoch, again)
    before = [consumed(epoch, step, 2, 1) for step in range(at)]
    after = [consumed(again, step, 3, 2) for step in range(at, epoch.steps)]
    assert sum(sum(step.values()) for step in before) == again.draws_before(at)
    assert [*before, *after] == [consumed(epoch, step, 1, 1) for step in range(epoch.steps)]
    assert again.draws_before(epoch.steps) == again.draws == n


def test_epochs_and_seeds_differ(make_clips) -> None:
    clips = make_clips(200, low=2.0)
    for policy in (
        Policy(packs=4, clips=3, views=2, crop_frames=96),
        Policy(packs=4, tokens=1200, window=50),
        Policy(packs=4, tokens=1200, packer="next_fit"),
    ):
        plans = [plan_epoch(clips, seed, epoch, policy) for seed in range(2) for epoch in range(2)]
        for i, one in enumerate(plans):
            for two in plans[:i]:
                assert not np.array_equal(one.row, two.row)
                mine, theirs = one.start[np.argsort(one.row)], two.start[np.argsort(two.row)]
                assert (mine != theirs).mean() > 0.9


def test_without_shuffling_an_epoch_still_crops_anew(make_clips) -> None:
    policy = Policy(packs=1, clips=3, crop_frames=48, shuffle=False)
    one, two = (plan_epoch(make_clips(50, low=2.0), 0, epoch, policy) for epoch in range(2))
    assert one.row.tolist() == two.row.tolist() == list(range(50))
    assert (one.start != two.start).mean() > 0.9


@pytest.mark.parametrize("packer", ["exact", "next_fit"])
def test_an_evaluation_is_in_index_order_with_first_crops(make_clips, packer: str) -> None:
    clips = make_clips(300).select(np.arange(5, 300, 2))
    policy = Policy(packs=6, tokens=1300, packer=packer, max_frames=512)
    epoch = plan_evaluation(clips, policy)
    assert epoch.row.tolist() == list(range(5, 300, 2))
    assert (epoch.start == 0).all()
    filled = np.diff(epoch.pack_offset) > 0
    assert (filled[:-1] >= filled[1:]).all()  # empty packs only make up the last step
    assert (epoch.steps - 1) * 6 < filled.sum()
    for several in ({"hops": (160, 320)}, {"pools": (1, 2)}):
        with pytest.raises(PlanError, match="one resolution"):
            plan_evaluation(clips, replace(policy, **several))
    plain = plan_evaluation(clips, replace(policy, mixup=1.0, roll=1.0, drop_tokens=0.5))
    assert same(plain, epoch)
    assert not plain.rolled


def test_nodes_that_keep_to_their_lanes_never_meet_anothers_clips(make_clips) -> None:
    clips = make_clips(800, low=0.3, shards=40)
    policy = Policy(packs=8, tokens=1300, window=50, lookahead=8)
    for locality, apart in (("node", True), ("none", False)):
        epoch = plan_epoch(clips, 0, 0, replace(policy, locality=locality))
        lane = np.repeat(np.tile(np.arange(8), epoch.steps), np.diff(epoch.pack_offset))
        met = [set(clips.shard[epoch.row[lane == number]].tolist()) for number in range(8)]
        again = sum(len(shards) for shards in met) - 40
        assert (again <= 7) == apart  # 7 cuts between lanes, each within one shard at most
    # Ends that are packed together leave fewer half-empty packs.
    ends = [plan_epoch(clips, 0, 0, replace(policy, locality=locality)).summary() for locality in ("none", "node")]
    assert ends[0]["packs"] < ends[1]["packs"]
    assert ends[0]["padding"] < 0.01


def test_a_set_smaller_than_a_step_is_one_step_with_empty_packs(make_clips) -> None:
    epoch = plan_epoch(make_clips(3), 0, 0, Policy(packs=32, clips=1))
    summary = epoch.summary()
    assert (summary["steps"], summary["packs"], summary["empty_packs"]) == (1, 3, 29)


def test_the_summary_is_what_counting_gives(make_clips) -> None:
    clips = make_clips(150)
    policy = Policy(packs=6, tokens=900, views=2, crop_frames=96, pad=False)
    epoch = plan_epoch(clips, 0, 0, policy)
    summary = epoch.summary(world=4, per_forward=2)
    own = np.array([1 + (int(n) - 400) // 160 for n in clips.samples])
    assert summary["padded_short"] == (own < 16).sum() > 0
    assert summary["shorter"] == summary["padded_short"]
    assert summary["draws"] == 150
    assert summary["draws_step_mean"] == 150 / epoch.steps
    assert summary["tokens"] == epoch.tokens.sum()
    assert summary["tokens_step_max"] == max(epoch.pack_tokens[s * 6 : s * 6 + 6].sum() for s in range(epoch.steps))
    assert summary["packs"] + summary["empty_packs"] == epoch.steps * 6
    assert summary["padding"] == pytest.approx(1 - epoch.tokens.sum() / (summary["packs"] * 900))
    assert summary["waste"] == pytest.approx(1 - epoch.tokens.sum() / (epoch.steps * 8 * 900))  # 6 packs in 8 places

    padded = plan_epoch(clips, 0, 0, Policy(packs=6, clips=5, views=2, crop_frames=96))
    needed = 95 * 160 + 400
    heard = np.minimum(clips.samples, needed).sum() / (150 * needed)
    assert padded.summary()["silence"] == pytest.approx(1 - heard)
    assert padded.summary()["shorter"] == (clips.samples < needed).sum()
    assert padded.summary()["padded_short"] == 0
    assert padded.summary()["waste"] == pytest.approx(0)


def test_the_exact_packer_wastes_next_to_nothing_of_a_large_epoch() -> None:
    from gamut.plan import Clips

    rng = np.random.default_rng(0)
    samples = (np.minimum(4 + rng.exponential(4.2, 20000), 30.0) * 16000).astype(np.int64)  # VoxCeleb-like
    clips = Clips(np.arange(20000), rng.integers(0, 2**64, 20000, np.uint64), np.arange(20000) // 500, samples, samples)
    for tokens, class_token, limit in ((2048, False, 0.001), (2048, True, 0.003)):
        policy = Policy(packs=64, tokens=tokens, class_token=class_token)
        summary = plan_epoch(clips, 0, 0, policy).summary()
        assert summary["padding"] <= limit
        assert summary["steps"] == -(-summary["packs"] // 64)  # lanes end together: no step for one lane alone


def test_the_plan_knows_no_torch() -> None:
    code = "import sys, gamut.plan; sys.exit(any(m.split('.')[0] in ('torch', 'deepspeed') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
