"""Every engine computes what a hand-written AdamW computes, whatever the split of the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import adam_recipe, every_engine, split_recipe, summed, unclipped, with_adam, with_gradients
from ranks import run
from reference import by_the_same_split, reference
from toy import toy_recipe

from gamut.recipe import schema

EPOCHS = 4
FP32 = ("0-fp32", "1-fp32", "2-fp32", "3-fp32", "oss-fp32")
BF16 = ("1-bf16", "2-bf16", "3-bf16")
# ranks, packs a forward, packs a step: accumulation 1 and 4 on one rank and on two
SPLITS = {"1 rank x 1": (1, 4, 4), "2 ranks x 4": (2, 1, 8), "1 rank x 4": (1, 1, 4), "2 ranks x 1": (2, 4, 8)}
SHORT = ("1 rank x 1", "2 ranks x 4")
EACH = [pytest.param(split, marks=[] if split in SHORT else pytest.mark.long) for split in SPLITS]


@pytest.fixture(scope="module", params=EACH)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, dict]]]:
    """(packs a step, each rank's answers) of a split."""
    ranks, per_forward, packs = SPLITS[request.param]
    return packs, run(ranks, every_engine, tmp_path_factory.mktemp("parity"), per_forward, packs)


@pytest.fixture(scope="module")
def expected() -> dict[int, dict]:
    """What whole batches come to, by the packs of a step."""
    return {
        packs: reference(toy_recipe(step=schema.Step(packs=packs, clips=2)), EPOCHS, packs=packs) for packs in (4, 8)
    }


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def largest_share(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The largest difference, in units of the largest number of its tensor."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()) for name in a)


@pytest.mark.parametrize("split", EACH)
def test_gradients_weights_and_teacher_are_those_of_plain_adamw_on_the_same_split(tmp_path: Path, split: str) -> None:
    ranks, per_forward, packs = SPLITS[split]
    epochs = 2
    answers = run(ranks, with_gradients, tmp_path, per_forward, packs, epochs)
    for engine in FP32:
        # Stages 2 and 3 sum over the ranks in every micro-batch, the others once a step.
        each_micro = engine in ("2-fp32", "3-fp32")
        recipe = split_recipe(0, per_forward, packs, **unclipped(epochs))
        plain = by_the_same_split(recipe, epochs, ranks, each_micro=each_micro)
        for answer in answers:
            mine = answer[engine]
            assert len(mine["gradients"]) == len(plain["gradients"]) == 5 * epochs
            for step, (here, there) in enumerate(zip(mine["gradients"], plain["gradients"], strict=True)):
                assert largest_share(here, there) < 1e-7, (engine, step)
            assert largest_share(mine["weights"], plain["weights"]) < 1e-7, engine
            assert largest_share(mine["extra"], plain["extra"]) < 1e-7, engine


def test_bf16_gradients_are_summed_over_ranks_in_fp32(tmp_path: Path) -> None:
    """Two ranks come to what one does that adds up the same two micro-batches in fp32; summed in bf16 they do not."""
    (one,) = run(1, with_gradients, tmp_path / "one", 1, 2, 1, "bf16")
    two = run(2, with_gradients, tmp_path / "two", 1, 2, 1, "bf16")
    rounded = run(2, with_gradients, tmp_path / "rounded", 1, 2, 1, "bf16", "bf16")
    for engine in BF16:
        first = one[engine]["gradients"][0]
        for answer in two:
            assert largest_share(answer[engine]["gradients"][0], first) < 1e-6, engine
        assert largest_share(rounded[0][engine]["gradients"][0], first) > 1e-4, engine


@pytest.mark.parametrize("packs", [2, 3])
def test_sums_sent_during_the_backward_are_those_sent_after_it(tmp_path: Path, packs: int) -> None:
    """Bit for bit, with several micro-batches a step and with a rank that has one less."""
    recipe = split_recipe(1, 1, packs, precision="bf16", epochs=2)
    for answer in run(2, summed, tmp_path, recipe, packs):
        for name in ("beside", "small"):
            assert largest_difference(answer[name]["weights"], answer["after"]["weights"]) == 0.0
            assert largest_difference(answer[name]["extra"], answer["after"]["extra"]) == 0.0
        assert answer["after"]["sent"] == []
        assert len(answer["small"]["sent"]) == 10
        assert answer["small"]["early"] == answer["small"]["sent"]  # all were sent before the backward had ended
        assert answer["small"]["sent"][0] > 2


def test_adam_is_torch_s_with_the_decay_inside_the_gradient(tmp_path: Path) -> None:
    epochs = 4
    recipe = adam_recipe(0, epochs)
    plain = by_the_same_split(recipe, epochs, 1)
    other = by_the_same_split(replace(recipe, optim=replace(recipe.optim, name="adamw")), epochs, 1)
    assert largest_share(plain["weights"], other["weights"]) > 1e-2  # it makes a difference
    (answer,) = run(1, with_adam, tmp_path, epochs)
    for engine, mine in answer.items():
        assert largest_share(mine["weights"], plain["weights"]) < 1e-7, engine


@pytest.mark.parametrize("engine", FP32)
def test_every_split_follows_the_reference(runs: tuple, expected: dict, engine: str) -> None:
    packs, answers = runs
    theirs = expected[packs]
    for answer in answers:
        lines = answer[engine]["lines"]
        lr = max(values["lr"] for _, values in lines)
        assert [step for step, _ in lines] == list(range(1, 5 * EPOCHS + 1))
        assert [values["loss"] for _, values in lines] == pytest.approx(list(theirs["losses"]), rel=1e-6)
        assert [values["gradient_norm"] for _, values in lines] == pytest.approx(list(theirs["norms"]), rel=1e-5)
        assert largest_difference(answer[engine]["weights"], theirs["weights"]) < 0.02 * lr
        assert largest_difference(answer[engine]["extra"], theirs["extra"]) < 0.02 * lr


def test_ranks_agree_bit_for_bit(runs: tuple) -> None:
    first, *others = runs[1]
    for engine in first:
        for other in others:
            assert largest_difference(first[engine]["weights"], other[engine]["weights"]) == 0.0, engine
            assert largest_difference(first[engine]["extra"], other[engine]["extra"]) == 0.0, engine


@pytest.mark.parametrize("engine", BF16)
def test_bf16_stays_near_the_reference(runs: tuple, expected: dict, engine: str) -> None:
    packs, answers = runs
    losses = np.array([values["loss"] for _, values in answers[0][engine]["lines"]])
    assert np.all(np.isfinite(losses))
    assert np.abs(losses / np.array(expected[packs]["losses"]) - 1).max() < 0.05


def test_the_run_learns(expected: dict) -> None:
    for theirs in expected.values():
        assert np.mean(theirs["losses"][-5:]) < 0.7 * np.mean(theirs["losses"][:5])


def test_every_row_is_seen_once_an_epoch(runs: tuple) -> None:
    packs, answers = runs
    for engine in answers[0]:
        for epoch in range(EPOCHS):
            rows = [row for answer in answers for e, _, rows in answer[engine]["seen"] if e == epoch for row in rows]
            assert sorted(rows) == list(range({4: 34, 8: 73}[packs])), (engine, epoch)
