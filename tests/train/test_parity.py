"""Every engine computes what a hand-written AdamW computes, whatever the split of the work."""

from __future__ import annotations

import numpy as np
import pytest
from cases import every_engine
from ranks import run
from reference import by_the_same_split, reference
from toy import toy_recipe

from gamut.recipe import schema

EPOCHS = 4
FP32 = ("0-fp32", "1-fp32", "2-fp32", "oss-fp32")
BF16 = ("1-bf16", "2-bf16")
# ranks, packs a forward, packs a step: accumulation 4 and 1 on one rank, 4 and 1 on two
SPLITS = {"1 rank x 4": (1, 1, 4), "1 rank x 1": (1, 4, 4), "2 ranks x 4": (2, 1, 8), "2 ranks x 1": (2, 4, 8)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, dict]]]:
    """By split: each rank's answers."""
    folder = tmp_path_factory.mktemp("parity")
    return {
        split: run(ranks, every_engine, folder / split, per_forward, packs)
        for split, (ranks, per_forward, packs) in SPLITS.items()
    }


@pytest.fixture(scope="module")
def expected() -> dict[int, dict]:
    """What whole batches come to, by the packs of a step."""
    return {
        packs: reference(toy_recipe(step=schema.Step(packs=packs, clips=2)), EPOCHS, packs=packs) for packs in (4, 8)
    }


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize("engine", FP32)
@pytest.mark.parametrize("split", SPLITS)
def test_gradients_and_weights_are_those_of_plain_adamw_on_the_same_split(runs: dict, engine: str, split: str) -> None:
    ranks, per_forward, packs = SPLITS[split]
    loader = schema.Loader(workers=0, packs_per_forward=per_forward)
    plain = by_the_same_split(toy_recipe(step=schema.Step(packs=packs, clips=2), loader=loader), EPOCHS, ranks)
    for answer in runs[split]:
        mine = answer[engine]
        assert len(mine["gradients"]) == len(plain["gradients"]) == 5 * EPOCHS
        for step, (here, there) in enumerate(zip(mine["gradients"], plain["gradients"], strict=True)):
            assert largest_difference(here, there) < 1e-6 * max(1.0, *(np.abs(g).max() for g in there.values())), step
        for step in range(1):
            assert largest_difference(mine["gradients"][step], plain["gradients"][step]) < 1e-7
        assert largest_difference(mine["weights"], plain["weights"]) < 1e-7
        assert largest_difference(mine["extra"], plain["extra"]) < 1e-7


@pytest.mark.parametrize("engine", FP32)
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_follows_the_reference(runs: dict, expected: dict, engine: str, split: str) -> None:
    theirs = expected[SPLITS[split][2]]
    for answer in runs[split]:
        lines = answer[engine]["lines"]
        lr = max(values["lr"] for _, values in lines)
        assert [step for step, _ in lines] == list(range(1, 5 * EPOCHS + 1))
        np.testing.assert_allclose([values["loss"] for _, values in lines], theirs["losses"], rtol=1e-6)
        np.testing.assert_allclose([values["gradient_norm"] for _, values in lines], theirs["norms"], rtol=1e-5)
        assert largest_difference(answer[engine]["weights"], theirs["weights"]) < 0.02 * lr
        assert largest_difference(answer[engine]["extra"], theirs["extra"]) < 0.02 * lr


def test_ranks_agree_bit_for_bit(runs: dict) -> None:
    for split, answers in runs.items():
        for stage in answers[0]:
            for other in answers[1:]:
                assert largest_difference(answers[0][stage]["weights"], other[stage]["weights"]) == 0.0, (split, stage)
                assert largest_difference(answers[0][stage]["extra"], other[stage]["extra"]) == 0.0, (split, stage)


@pytest.mark.parametrize("engine", BF16)
def test_bf16_stays_near_the_reference(runs: dict, expected: dict, engine: str) -> None:
    for split, answers in runs.items():
        losses = np.array([values["loss"] for _, values in answers[0][engine]["lines"]])
        assert np.all(np.isfinite(losses)), split
        assert np.abs(losses / np.array(expected[SPLITS[split][2]]["losses"]) - 1).max() < 0.05, split


def test_the_run_learns(expected: dict) -> None:
    for theirs in expected.values():
        assert np.mean(theirs["losses"][-5:]) < 0.7 * np.mean(theirs["losses"][:5])


def test_every_row_is_seen_once_an_epoch(runs: dict) -> None:
    for split, answers in runs.items():
        for engine in answers[0]:
            for epoch in range(EPOCHS):
                rows = [row for a in answers for e, _, rows in a[engine]["seen"] if e == epoch for row in rows]
                assert sorted(rows) == list(range(len(rows))), (split, engine, epoch)
                assert len(rows) == {4: 34, 8: 73}[SPLITS[split][2]]
