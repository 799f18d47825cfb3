"""Whole epochs at the size of the real sets: exactly once, next to no padding, equal work. Nothing here is timed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gamut.plan import Clips, Epoch, Policy, deal, forwards, plan_epoch

RANKS, NODES, A_RANK = 64, 8, 16
RESOLUTIONS = tuple(range(160, 641, 32))  # 10 ms x {1.0, 1.2, ..., 4.0}


def lengths(mix: str, n: int) -> np.ndarray:
    """Seconds of n clips."""
    rng = np.random.default_rng(0)
    if mix == "VoxCeleb":  # 4 to 145 s, 8.2 in the mean
        return np.minimum(4 + rng.exponential(4.2, n), 145.0)
    if mix == "Epic-Sounds":  # most are short, a few very long
        return np.exp(rng.normal(np.log(1.9), 1.35, n))
    return np.where(rng.random(n) < 0.95, 10.0, rng.uniform(1, 10, n))


def clips_of(mix: str, n: int) -> Clips:
    samples = np.maximum(400, (lengths(mix, n) * 16000).astype(np.int64))
    ids = np.random.default_rng(1).integers(0, 2**64, n, dtype=np.uint64)
    return Clips(np.arange(n), ids, np.arange(n) // 1000, samples, samples)


def imbalance(epoch: Epoch, nodes: int) -> float:
    """How far the costliest rank is over the mean, in the mean over up to 16 full steps."""
    over = []
    for step in np.unique(np.linspace(0, max(0, epoch.steps - 2), 16).astype(int)).tolist():
        cost = epoch.pack_cost[step * epoch.packs : (step + 1) * epoch.packs]
        load = np.array([cost[rank[rank >= 0]].sum() for rank in deal(cost, RANKS, 1, nodes).reshape(RANKS, -1)])
        over.append(load.max() / load.mean() - 1)
    return float(np.mean(over))


def run_share(epoch: Epoch, budget: int) -> float:
    """Tokens over what all packs that are run could hold, empty ones included."""
    by_step = epoch.pack_cost.reshape(epoch.steps, epoch.packs)
    return epoch.tokens.sum() / (sum(forwards(cost, RANKS, 1) for cost in by_step) * RANKS * budget)


@pytest.mark.parametrize("class_token", [False, True], ids=["", "cls"])
@pytest.mark.parametrize("mix", ["VoxCeleb", "Epic-Sounds", "AudioSet"])
@pytest.mark.parametrize("n", [50_000, pytest.param(2_000_000, marks=pytest.mark.long)])
def test_an_epoch_is_whole_full_and_balanced(mix: str, class_token: bool, n: int) -> None:
    clips = clips_of(mix, n)
    policy = Policy(
        packs=RANKS * A_RANK, tokens=2048, max_frames=2992, class_token=class_token,
        hops=RESOLUTIONS if mix == "AudioSet" else (160,),
    )  # fmt: skip
    epoch = plan_epoch(clips, 0, 0, policy)
    assert np.array_equal(np.sort(epoch.row), np.arange(n))
    assert epoch.pack_tokens.max() <= 2048
    limit = 0.003 if class_token else 0.001
    assert epoch.summary()["padding"] <= limit
    if n > 10**6:  # of a small set the up to 63 empty packs of the last step would be the measure
        assert 1 - run_share(epoch, 2048) <= limit
        assert epoch.summary(RANKS)["waste"] == pytest.approx(1 - run_share(epoch, 2048))
    assert imbalance(epoch, 1) <= 0.005
    local = plan_epoch(clips, 0, 0, replace(policy, locality="node"))
    assert np.array_equal(np.sort(local.row), np.arange(n))
    assert imbalance(local, NODES) <= 0.01
