from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gamut.errors import PlanError
from gamut.plan import Clips, Epoch, Policy, plan_epoch


def slow_frames(samples: int, hop: int, pool: int, policy: Policy) -> int:
    """Count whole 25 ms windows one by one, average them, then take whole patches."""
    windows, at = 0, 0
    while at + 400 <= min(samples, policy.max_samples or samples):
        windows += 1
        at += hop
    whole = 0
    while (whole + 1) * 16 * pool <= windows:
        whole += 1
    frames = max(1, whole) * 16
    if policy.pad_to:
        return max(1, int(policy.pad_to * 160 / (hop * pool) / 16)) * 16
    if policy.crop_frames and policy.pad:
        return policy.crop_frames
    for limit in (policy.crop_frames, policy.max_frames):
        if limit:
            frames = min(frames, limit)
    return frames


def slow_local(samples: int, hop: int, pool: int, policy: Policy) -> int:
    if policy.pad:
        return policy.local_frames
    free = replace(policy, crop_frames=None, max_frames=None)
    return min(policy.local_frames, slow_frames(samples, hop, pool, free))


def of_lengths(samples: list[int]) -> Clips:
    n = len(samples)
    return Clips(np.arange(n), np.arange(n) * 7919 + 1, np.zeros(n), np.array(samples), np.array(samples))


multiple = st.integers(1, 6).map(lambda k: 16 * k)


def policy_of(pad_to: int | None, **fields: object) -> Policy:
    if pad_to is not None:
        fields |= {"crop_frames": None, "pad": True}
    return Policy(packs=2, clips=3, pad_to=pad_to, **fields)  # type: ignore[arg-type]


policies = st.builds(
    policy_of,
    views=st.integers(1, 3),
    crop_frames=st.none() | multiple,
    max_frames=st.none() | st.just(96),
    pad=st.booleans(),
    random_crop=st.booleans(),
    hops=st.lists(st.integers(80, 640), min_size=1, max_size=4).map(tuple),
    class_token=st.booleans(),
    distillation_token=st.booleans(),
    stride=st.sampled_from([16, 16, 10]),
    pools=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    pad_to=st.none() | st.none() | multiple,
    max_samples=st.none() | st.integers(400, 30000),
    local_views=st.integers(0, 2),
    local_frames=multiple,
    roll=st.sampled_from([0.0, 0.5, 1.0]),
    drop_tokens=st.sampled_from([0.0, 0.1, 0.37, 0.9]),
    mixup=st.sampled_from([0.0, 0.5]),
)


@settings(max_examples=150)
@given(st.lists(st.integers(1, 60000), min_size=1, max_size=12), policies, st.integers(0, 5), st.integers(0, 3))
def test_frames_tokens_and_crops_are_those_of_the_slow_reference(
    samples: list[int], policy: Policy, seed: int, number: int
) -> None:
    epoch = plan_epoch(of_lengths(samples), seed, number, policy)
    assert sorted(epoch.row.tolist()) == list(range(len(samples)))
    for i, row in enumerate(epoch.row.tolist()):
        hop = int(epoch.hop[i, 0])
        pool = 1 if epoch.pool is None else int(epoch.pool[i, 0])
        assert hop in policy.hops
        assert pool in policy.pools
        local = slow_local(samples[row], hop, pool, policy)
        frames = [slow_frames(samples[row], hop, pool, policy)] * policy.views + [local] * policy.local_views
        views = len(frames)
        assert epoch.frames[i].tolist() == frames
        assert epoch.hop[i].tolist() == [hop] * views
        apart = policy.stride
        whole = [len(range(0, f - 15, apart)) * len(range(0, 128 - 15, apart)) for f in frames]
        patches = [math.ceil(cells - Fraction(str(policy.drop_tokens)) * cells) for cells in whole]
        assert epoch.tokens[i] == sum(patches) + views * (policy.class_token + policy.distillation_token)
        needed = [(f * pool - 1) * hop + 400 for f in frames]
        assert epoch.needed(slice(i, i + 1))[0].tolist() == needed
        for view in range(views):
            start, length = int(epoch.start[i, view]), int(epoch.length[i, view])
            assert length == min(samples[row], needed[view])
            assert 0 <= start < samples[row]
            assert policy.roll or start + length <= samples[row]
            if not policy.random_crop and not policy.roll:
                assert start == 0
    assert epoch.pack_tokens.sum() == epoch.tokens.sum()


def draws_of_one_clip(samples: int, policy: Policy, epochs: int) -> list[Epoch]:
    return [plan_epoch(of_lengths([samples]), 0, number, policy) for number in range(epochs)]


def test_random_starts_are_uniform_over_every_place_where_the_view_fits() -> None:
    policy = Policy(packs=1, clips=1, views=2, crop_frames=16)
    spare = 9  # ten places
    epochs = draws_of_one_clip(15 * 160 + 400 + spare, policy, 2000)
    starts = np.concatenate([epoch.start for epoch in epochs])
    assert starts.min() == 0
    assert starts.max() == spare
    for view in range(2):
        assert chisquare(np.bincount(starts[:, view], minlength=spare + 1)).pvalue > 1e-4
    pairs = np.bincount(starts[:, 0] * (spare + 1) + starts[:, 1], minlength=(spare + 1) ** 2)
    assert chisquare(pairs).pvalue > 1e-4  # the views are independent of each other


def test_a_rolled_waveform_is_cropped_anywhere_and_round_its_end() -> None:
    """Half the draws are rolled, by any amount alike; all views of a draw by the same."""
    samples, policy = 20, Policy(packs=1, clips=1, views=2, crop_frames=16, random_crop=False, roll=0.5)
    starts = np.concatenate([epoch.start for epoch in draws_of_one_clip(samples, policy, 3000)])
    assert (starts[:, 0] == starts[:, 1]).all()
    expected = np.full(samples, 0.5 / samples)
    expected[0] += 0.5
    assert chisquare(np.bincount(starts[:, 0], minlength=samples), expected * len(starts)).pvalue > 1e-4
    again = replace(policy, random_crop=True, roll=1.0)  # a crop of 16 frames at each of 3 places of the rolled clip
    starts = np.concatenate([e.start for e in draws_of_one_clip(15 * 160 + 402, again, 400)])
    distance = (starts[:, 0] - starts[:, 1]) % (15 * 160 + 402)
    assert set(distance.tolist()) == {0, 1, 2, 15 * 160 + 401, 15 * 160 + 400}


def test_frames_averaged_are_uniform_over_the_candidates_and_independent_of_the_hop() -> None:
    policy = Policy(packs=1, clips=3000, hops=(160, 320), pools=(1, 2, 3, 4))
    epoch = plan_epoch(of_lengths([160000] * 3000), 1, 0, policy)
    assert epoch.pool is not None
    counts = np.bincount(epoch.hop[:, 0] // 320 * 4 + epoch.pool[:, 0] - 1, minlength=8)
    assert chisquare(counts).pvalue > 1e-4


def test_padded_to_one_length_in_time_as_the_paper_has_it() -> None:
    """A 10 s clip at C takes floor16(1,024 / C) frames: 1,024, 848, ... 256."""
    hops = tuple(range(160, 641, 32))
    epoch = plan_epoch(of_lengths([160000] * 400), 0, 0, Policy(packs=1, clips=400, hops=hops, pad_to=1024))
    paper = {160 * tenths // 10: 1024 * 10 // tenths // 16 * 16 for tenths in range(10, 41, 2)}
    assert {int(h): int(f) for h, f in zip(epoch.hop[:, 0], epoch.frames[:, 0])} == paper


def test_thirty_seconds_are_thirty_seconds_at_any_resolution() -> None:
    clips = of_lengths([40 * 16000] * 60 + [5 * 16000])
    policy = Policy(packs=1, clips=61, hops=(160, 640), max_samples=30 * 16000)
    epoch = plan_epoch(clips, 0, 0, policy)
    long = epoch.row < 60
    assert set(zip(epoch.hop[long, 0].tolist(), epoch.frames[long, 0].tolist())) == {(160, 2992), (640, 736)}
    assert epoch.length.max() <= 30 * 16000
    assert epoch.start[long].max() > 5 * 16000  # and the thirty may be any
    assert epoch.summary()["cut"] == 60
    with pytest.raises(PlanError, match=r"60 of 61 clips .* `max_samples`, 480000"):
        plan_epoch(clips, 0, 0, replace(policy, too_long="error"))


def test_hops_are_uniform_over_the_candidates() -> None:
    policy = Policy(packs=1, clips=3000, hops=tuple(range(160, 641, 32)))
    epoch = plan_epoch(of_lengths([160000] * 3000), 1, 0, policy)
    counts = np.bincount((epoch.hop[:, 0] - 160) // 32, minlength=16)
    assert len(counts) == 16
    assert chisquare(counts).pvalue > 1e-4
    again = plan_epoch(of_lengths([160000] * 3000), 1, 1, policy)
    by_row, other = np.argsort(epoch.row), np.argsort(again.row)
    same = np.mean(epoch.hop[by_row, 0] == again.hop[other, 0])
    assert 0.03 < same < 0.1  # drawn anew every epoch: 1 in 16 agree


def test_a_crop_does_not_depend_on_what_else_is_planned(make_clips) -> None:
    clips = make_clips(300, low=1.0)
    policy = Policy(packs=4, clips=3, views=2, crop_frames=48, hops=(160, 200))
    whole = plan_epoch(clips, 3, 2, policy)
    part = plan_epoch(clips.select(np.arange(0, 300, 7)), 3, 2, replace(policy, packs=2, clips=5, shuffle=False))
    place = {row: i for i, row in enumerate(whole.row.tolist())}
    for i, row in enumerate(part.row.tolist()):
        assert part.start[i].tolist() == whole.start[place[row]].tolist()
        assert part.hop[i].tolist() == whole.hop[place[row]].tolist()


def test_a_clip_over_the_budget_is_an_error_that_says_what_to_change() -> None:
    clips = of_lengths([16000, 160000, 480000])
    with pytest.raises(
        PlanError, match=r"row 2 .* 1497 tokens .* 2 of 3 clips .* at least 1497, or shorten .* 496 frames"
    ):
        plan_epoch(clips, 0, 0, Policy(packs=1, tokens=256))
    assert plan_epoch(clips, 0, 0, Policy(packs=1, tokens=256, max_frames=496)).draws == 3
    assert plan_epoch(clips, 0, 0, Policy(packs=1, tokens=1497)).draws == 3
    ast = Policy(packs=1, tokens=1214, stride=10, distillation_token=True)  # AST's 101 x 12 patches and two tokens
    with pytest.raises(PlanError, match=r"3578 tokens .* or shorten .* 1024 frames"):
        plan_epoch(clips, 0, 0, ast)
    assert plan_epoch(clips, 0, 0, replace(ast, max_frames=1024)).tokens.max() == 1214


def test_a_clip_over_the_limit_is_cut_and_counted_or_an_error() -> None:
    clips = of_lengths([16000, 160000, 480000])
    policy = Policy(packs=1, clips=3, max_frames=992)
    epoch = plan_epoch(clips, 0, 0, policy)
    assert epoch.summary()["cut"] == 1
    assert sorted(epoch.frames[:, 0].tolist()) == [96, 992, 992]
    with pytest.raises(PlanError, match=r"1 of 3 clips .* row 2 .* 2992 frames"):
        plan_epoch(clips, 0, 0, replace(policy, too_long="error"))
    assert plan_epoch(clips, 0, 0, replace(policy, max_frames=2992, too_long="error")).summary()["cut"] == 0


def test_an_empty_clip_and_an_empty_set_are_errors() -> None:
    with pytest.raises(PlanError, match=r"row 1 .* has 0 samples"):
        plan_epoch(of_lengths([16000, 0]), 0, 0, Policy(packs=1, clips=1))
    with pytest.raises(PlanError, match="no clips to plan"):
        plan_epoch(of_lengths([]), 0, 0, Policy(packs=1, clips=1))
