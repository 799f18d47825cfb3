"""Who is mixed with whom, how often and at which weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import beta, binomtest, chisquare, kstest

from gamut.plan import Clips, Policy, plan_epoch, plan_evaluation
from gamut.plan.partners import beta_weights
from gamut.randomness import key
from tests.close import assert_close


def of_length(n: int, samples: int = 16000, shards: int = 1) -> Clips:
    lengths = np.full(n, samples)
    return Clips(np.arange(n), np.arange(n) * 7919 + 1, np.arange(n) * shards // n, lengths, lengths)


def test_weights_are_beta() -> None:
    for number in (1, 2, 10):
        weights = beta_weights(key(3, np.arange(4000)), number)
        assert weights.dtype == np.float32
        assert kstest(weights, beta(number, number).cdf).pvalue > 1e-4


def test_a_rate_of_draws_is_mixed_at_such_weights() -> None:
    epoch = plan_epoch(of_length(4000), 0, 0, Policy(packs=4, clips=10, mixup=0.3))
    assert epoch.partner is not None
    assert epoch.partner_weight is not None
    mixed = epoch.partner >= 0
    assert binomtest(int(mixed.sum()), 4000, 0.3).pvalue > 1e-4
    assert kstest(epoch.partner_weight[mixed], beta(10, 10).cdf).pvalue > 1e-4
    assert epoch.summary()["mixed"] == mixed.sum()


def test_a_partner_is_any_other_clip_of_the_whole_set() -> None:
    clips, policy = of_length(12, shards=4), Policy(packs=4, clips=1, window=3, mixup=1.0)
    pairs = np.zeros((12, 12))
    for number in range(300):
        epoch = plan_epoch(clips, 0, number, policy)
        np.add.at(pairs, (epoch.row, epoch.partner), 1)
    assert (pairs.diagonal() == 0).all()
    assert chisquare(pairs[~np.eye(12, dtype=bool)]).pvalue > 1e-4


def test_nodes_that_keep_to_their_lanes_find_partners_in_their_window() -> None:
    """Nothing is read for a partner that the lane's node would not read anyway, at about that time."""
    clips = of_length(400, shards=40)
    policy = Policy(packs=4, tokens=600, window=25, mixup=1.0, locality="node", class_token=False)
    epoch = plan_epoch(clips, 0, 0, policy)
    assert epoch.partner is not None
    lane = np.repeat(np.tile(np.arange(4), epoch.steps), np.diff(epoch.pack_offset))
    of_row = np.empty(400, np.int64)
    of_row[epoch.row] = lane
    assert (epoch.partner >= 0).all()
    assert (of_row[epoch.partner] == lane).all()
    position = np.empty(400, np.int64)  # in its lane
    for number in range(4):
        position[epoch.row[lane == number]] = np.arange((lane == number).sum())
    far = np.abs(position[epoch.partner] - position[epoch.row])
    assert far.max() < 2 * 25
    none = plan_epoch(clips, 0, 0, replace(policy, locality="none"))
    assert (of_row[none.partner] != lane).mean() > 0.5


def test_a_clip_with_no_other_stays_alone() -> None:
    for locality in ("none", "node"):
        epoch = plan_epoch(of_length(1), 0, 0, Policy(packs=1, clips=1, mixup=1.0, locality=locality))
        assert epoch.partner is not None
        assert epoch.partner.tolist() == [-1]


def test_partners_do_not_depend_on_the_packs_and_are_in_their_cost() -> None:
    clips = of_length(200)
    plans = [plan_epoch(clips, 1, 0, Policy(packs=packs, clips=4, mixup=0.5)) for packs in (2, 5)]
    one, two = ({int(r): (int(p), float(w)) for r, p, w in zip(e.row, e.partner, e.partner_weight)} for e in plans)
    assert one == two
    plain = plan_epoch(clips, 1, 0, Policy(packs=2, clips=4))
    assert np.array_equal(plain.row, plans[0].row)
    assert np.array_equal(plain.pack_tokens, plans[0].pack_tokens)
    more = plans[0].pack_cost - plain.pack_cost
    mixed = np.add.reduceat((plans[0].partner >= 0) * plans[0].tokens, plans[0].pack_offset[:-1])
    assert_close(more, 0.02 * mixed)


def test_a_partner_in_mixtures_is_a_view_of_whole_patches_for_the_teacher_and_in_the_cost() -> None:
    """A shorter one covers only its part; both views have the same partner."""
    lengths = np.random.default_rng(0).integers(300, 40000, 200)
    clips = Clips(np.arange(200), np.arange(200) * 7919 + 1, np.zeros(200, np.int64), lengths, lengths)
    policy = Policy(packs=2, clips=4, views=2, crop_frames=96, hops=(160, 200), pools=(1, 2), mixtures=0.5)
    epoch, plain = (plan_epoch(clips, 1, 0, each) for each in (policy, replace(policy, mixtures=0.0)))
    for name in ("row", "start", "length", "frames", "tokens", "pack_tokens"):
        assert np.array_equal(getattr(epoch, name), getattr(plain, name)), name
    assert epoch.partner is not None
    assert epoch.partner_weight is None
    mixed = epoch.partner >= 0
    assert binomtest(int(mixed.sum()), 200, 0.5).pvalue > 1e-4
    heard = np.zeros((200, 2))
    for draw in np.flatnonzero(mixed):
        partner = lengths[epoch.partner[draw]]
        for view in range(2):
            hop, pool, length = int(epoch.hop[draw, view]), int(epoch.pool[draw, view]), int(epoch.length[draw, view])
            most = min(partner, length)
            columns = max((1 + (most - 400) // hop) // pool // 16, 1)
            assert epoch.partner_length[draw, view] == min(most, (columns * 16 * pool - 1) * hop + 400)
            assert epoch.partner_start[draw, view] + epoch.partner_length[draw, view] <= partner
            assert columns * 16 <= epoch.frames[draw, view]
            heard[draw, view] = 8 * columns + 1
    assert (epoch.partner_length[~mixed] == 0).all()
    own = 2 * (48 + 1 + (48 + 1) ** 2 / 4608)
    each = (heard + heard**2 / 4608).sum(1) / 3 + own / 3 + 0.02 * mixed * epoch.tokens
    assert_close(epoch.pack_cost - plain.pack_cost, np.add.reduceat(each, epoch.pack_offset[:-1]))
    assert plan_evaluation(clips, replace(policy, hops=(160,), pools=(1,))).partner is None
