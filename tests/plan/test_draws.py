"""What an epoch draws: exactly as many of each as was asked for, the same for everybody, copies far apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gamut.errors import PlanError
from gamut.plan import Clips, Policy, deal, differing, plan_epoch, plan_evaluation, plan_fingerprint
from gamut.plan.draws import draw_clips, set_draws

from .test_epoch import consumed, same


def mixed(clips: Clips, sets: int, seed: int = 0) -> Clips:
    """The clips as so many sets, of different sizes, none empty, with shards of their own."""
    n = len(clips)
    source = np.minimum(np.arange(n) // (n // sets + 1), sets - 1)
    source[np.random.default_rng(seed).integers(0, n, n // 3)] = 0
    source[np.arange(sets) * (n // sets)] = np.arange(sets)
    order = np.argsort(source, kind="stable")
    source = source[order]
    return replace(clips.select(order), row=np.arange(n), source=source, shard=np.arange(n) * 12 // n * sets + source)


def weighted(clips: Clips, seed: int = 0) -> Clips:
    return replace(clips, weight=np.random.default_rng(seed).exponential(1.0, len(clips)) ** 3)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, bool, int, Policy]:
    """(clips, with weights?, sets, policy): everything that decides what is drawn."""
    n = draw(st.integers(12, 200))
    sets = draw(st.integers(1, 4))
    return (
        n,
        draw(st.booleans()),
        sets,
        Policy(
            packs=draw(st.integers(1, 20)),
            tokens=draw(st.integers(97, 900)),
            max_frames=192,
            random_crop=draw(st.booleans()),
            packer=draw(st.sampled_from(["exact", "next_fit"])),
            window=draw(st.sampled_from([1, 30, 16384])),
            shuffle=draw(st.booleans()),
            locality=draw(st.sampled_from(["none", "node"])),
            hops=draw(st.sampled_from([(160,), (160, 320)])),
            mixup=draw(st.sampled_from([0.0, 0.5])),
            draws=draw(st.none() | st.integers(60, 500)),
            proportions=tuple(draw(st.floats(0.3, 3.0)) for _ in range(sets)) if sets > 1 else (),
        ),
    )


def table(make_clips, n: int, weights: bool, sets: int) -> Clips:
    clips = make_clips(n)
    clips = mixed(clips, sets) if sets > 1 else clips
    return weighted(clips) if weights else clips


@settings(max_examples=80)
@given(case=cases(), epoch=st.integers(0, 5), seed=st.integers(0, 3))
def test_an_epoch_has_exactly_the_draws_of_its_multiset(make_clips, case, epoch: int, seed: int) -> None:
    n, weights, sets, policy = case
    clips = table(make_clips, n, weights, sets)
    drawn = draw_clips(clips, seed, epoch, policy)
    planned = plan_epoch(clips, seed, epoch, policy)
    wanted = Counter(zip(clips.clip_id[drawn.place].tolist(), drawn.draw.tolist()))
    assert max(wanted.values()) == 1  # the copies of a clip have different numbers
    assert Counter(zip(planned.clip_id.tolist(), planned.draw.tolist())) == wanted
    assert np.array_equal(np.bincount(drawn.place, minlength=n)[drawn.place], drawn.copies)
    if planned.partner is not None:
        mixed = planned.partner >= 0
        assert (planned.partner[mixed] != planned.row[mixed]).all()
        assert np.isin(planned.partner[mixed], clips.row).all()
    assert planned.draws == (n if policy.draws is None else policy.draws)
    if sets > 1:
        per_set = np.bincount(clips.source[drawn.place], minlength=sets).tolist()
        assert per_set == set_draws(clips, policy)
        exact = np.array(policy.proportions) / sum(policy.proportions) * planned.draws
        assert np.abs(per_set - exact).max() < 1


@settings(max_examples=30)
@given(case=cases(), world=st.sampled_from([1, 2, 3, 4]), per_forward=st.integers(1, 3), data=st.data())
def test_any_number_of_ranks_and_any_stop_see_the_same_draws(
    make_clips, case, world: int, per_forward: int, data: st.DataObject
) -> None:
    n, weights, sets, policy = case
    clips = table(make_clips, n, weights, sets)
    epoch, again = plan_epoch(clips, 0, 1, policy), plan_epoch(clips, 0, 1, policy)
    assert same(epoch, again)
    at = data.draw(st.integers(0, epoch.steps))
    halves = [consumed(epoch, s, 1, 1) for s in range(at)]
    halves += [consumed(again, s, world, per_forward) for s in range(at, epoch.steps)]
    assert halves == [consumed(epoch, s, 2, 1) for s in range(epoch.steps)]


@settings(max_examples=40)
@given(n=st.integers(1, 60), draws=st.integers(1, 200), epochs=st.integers(1, 8))
def test_without_weights_every_clip_comes_equally_often_however_long_an_epoch_is(
    make_clips, n: int, draws: int, epochs: int
) -> None:
    clips, policy = make_clips(n), Policy(packs=1, clips=1, draws=draws)
    times = np.zeros(n, np.int64)
    for epoch in range(epochs):
        part = np.bincount(draw_clips(clips, 3, epoch, policy).place, minlength=n)
        assert part.sum() == draws
        times += part
        assert times.max() - times.min() <= 1  # one permutation after the other, also across epochs


def test_a_run_draws_by_its_weights(make_clips) -> None:
    clips = weighted(make_clips(300))
    epochs, policy = 40, Policy(packs=1, clips=1, draws=2500)
    times = sum(np.bincount(draw_clips(clips, 11, epoch, policy).place, minlength=300) for epoch in range(epochs))
    expected = clips.weight / clips.weight.sum() * epochs * 2500
    rare = expected < 5
    seen, wanted = np.append(times[~rare], times[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    assert chisquare(seen, wanted).pvalue > 0.001
    assert chisquare(seen, np.full(len(seen), wanted.mean())).pvalue < 1e-9  # the test would notice equal weights
    one, two = (draw_clips(clips, 11, epoch, policy).place for epoch in range(2))
    assert not np.array_equal(one, two)


def test_a_clip_without_weight_is_never_drawn(make_clips) -> None:
    weight = np.zeros(50)
    weight[[7, 31]] = 1.0, 3.0
    drawn = draw_clips(replace(make_clips(50), weight=weight), 0, 0, Policy(packs=1, clips=1, draws=4000))
    counts = np.bincount(drawn.place, minlength=50)
    assert np.flatnonzero(counts).tolist() == [7, 31]
    assert 0.7 < counts[31] / 4000 < 0.8


@pytest.mark.parametrize("window", [16384, 500])
def test_copies_of_a_clip_come_far_apart_and_are_cut_anew(make_clips, window: int) -> None:
    clips = make_clips(3000, low=3.0, shards=60)
    often = np.arange(0, 3000, 100)
    weight = np.ones(3000)
    weight[often] = 8.0
    policy = Policy(packs=8, clips=2, crop_frames=96, window=window, draws=6000)
    epoch = plan_epoch(replace(clips, weight=weight), 0, 0, policy)
    step = np.repeat(np.arange(epoch.steps * 8) // 8, np.diff(epoch.pack_offset))
    gaps, twice = [], 0
    for clip in often:
        mine = epoch.row == clip
        assert mine.sum() > 3
        assert sorted(epoch.draw[mine].tolist()) == list(range(mine.sum()))
        assert len(set(epoch.start[mine].ravel().tolist())) > 0.9 * mine.sum()
        gaps.append(np.diff(np.sort(step[mine])).std() / np.diff(np.sort(step[mine])).mean())
        twice += mine.sum() - len(set(step[mine].tolist()))
    assert np.mean(gaps) < 0.6  # independent places would give 1
    assert twice <= 3


@pytest.mark.parametrize("window", [16384, 200])
def test_a_mixture_keeps_its_proportions_all_the_way(make_clips, window: int) -> None:
    clips = mixed(make_clips(4000, low=1.0, shards=40), 3)
    policy = Policy(packs=16, clips=4, window=window, proportions=(1.0, 2.0, 5.0), draws=8000, crop_frames=96)
    epoch = plan_epoch(clips, 0, 0, policy)
    source = clips.source[epoch.row]
    for part in np.array_split(source, 10):
        share = np.bincount(part, minlength=3) / len(part)
        assert np.abs(share - np.array([1, 2, 5]) / 8).max() < 0.06
    in_epoch = np.bincount(source, minlength=3)
    assert in_epoch.tolist() == [1000, 2000, 5000]
    for number, size in enumerate(np.bincount(clips.source)):  # none of a set comes again before all have come
        times = np.bincount(epoch.row, minlength=4000)[clips.row[clips.source == number]]
        assert times.max() - times.min() <= 1
        assert len(times) == size


def test_a_mixture_of_once_each_streams_every_shard_once_front_to_back(make_clips) -> None:
    clips = mixed(make_clips(3000, shards=30), 2)
    sizes = tuple(np.bincount(clips.source).tolist())
    epoch = plan_epoch(clips, 0, 0, Policy(packs=1, clips=10, window=1, proportions=sizes))
    assert sorted(epoch.row.tolist()) == list(range(3000))
    for number in range(2):
        shards = clips.shard[epoch.row[clips.source[epoch.row] == number]]
        met = shards[np.flatnonzero(np.diff(shards, prepend=-1))].tolist()
        assert len(met) == len(set(met))


def test_an_evaluation_takes_every_clip_once_whatever_is_drawn_in_training(make_clips) -> None:
    clips = weighted(mixed(make_clips(60), 2))
    policy = Policy(packs=4, clips=3, draws=500, proportions=(1.0, 1.0))
    assert sorted(plan_evaluation(clips, policy).row.tolist()) == sorted(clips.row.tolist())


def test_another_weight_or_set_is_another_plan(make_clips) -> None:
    policy = Policy(packs=4, clips=3, proportions=(1.0, 1.0))
    clips = weighted(mixed(make_clips(60), 2))
    base = plan_fingerprint(clips, 0, policy)
    weight = clips.weight.copy()
    weight[3] += 1e-9
    changed = plan_fingerprint(replace(clips, weight=weight), 0, policy)
    assert [text.split()[0] for text in differing(base, changed)] == ["weights"]
    changed = plan_fingerprint(replace(clips, source=1 - clips.source), 0, policy)
    assert [text.split()[0] for text in differing(base, changed)] == ["index"]


def test_what_cannot_be_drawn_is_said(make_clips) -> None:
    clips = make_clips(20)
    for weight, said in (
        (np.full(20, -1.0), "row 0 of the index has the weight -1"),
        (np.append(np.ones(19), np.nan), "row 19 of the index has the weight nan"),
        (np.zeros(20), "so none can be drawn"),
    ):
        with pytest.raises(PlanError, match=said):
            replace(clips, weight=weight)
    two = replace(clips, source=np.arange(20) % 2)
    with pytest.raises(PlanError, match=r"mixture of 3 sets needs clips of each; there are \[10, 10, 0\]"):
        plan_epoch(two, 0, 0, Policy(packs=1, clips=1, proportions=(1.0, 1.0, 1.0)))
    with pytest.raises(PlanError, match="Set number 1 of the mixture gets none of the 20 draws an epoch"):
        plan_epoch(two, 0, 0, Policy(packs=1, clips=1, proportions=(1.0, 1e-6)))


def test_a_step_of_repeated_clips_is_dealt_whole(make_clips) -> None:
    epoch = plan_epoch(weighted(make_clips(80)), 0, 0, Policy(packs=6, tokens=1300, draws=300))
    cost = epoch.pack_cost[:6]
    assert sorted(pack for pack in deal(cost, 2, 1).ravel().tolist() if pack >= 0) == list(range(6))
