"""The engine computes what a hand-written AdamW computes: every stage, any split of the work."""

from __future__ import annotations

import numpy as np
import pytest
from cases import every_stage
from ranks import run
from reference import reference
from toy import toy_recipe

EPOCHS = 4
FP32 = ("0-fp32", "1-fp32", "2-fp32")


@pytest.fixture(scope="module")
def expected() -> dict:
    return reference(toy_recipe(), EPOCHS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, dict]]]:
    """By split of a step's 4 packs: each rank's answers."""
    folder = tmp_path_factory.mktemp("parity")
    return {
        "1 rank x 4": run(1, every_stage, folder / "a"),
        "1 rank x 2 joined": run(1, every_stage, folder / "b", 2),
        "2 ranks x 2": run(2, every_stage, folder / "c"),
    }


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize("stage", FP32)
def test_every_split_follows_the_reference(runs: dict, expected: dict, stage: str) -> None:
    lr = max(values["lr"] for _, values in runs["1 rank x 4"][0][stage]["lines"])
    for split, answers in runs.items():
        lines = answers[0][stage]["lines"]
        assert [step for step, _ in lines] == list(range(1, 5 * EPOCHS + 1)), split
        losses = [values["loss"] for _, values in lines]
        np.testing.assert_allclose(losses, expected["losses"], rtol=1e-6, err_msg=split)
        norms = [values["gradient_norm"] for _, values in lines]
        np.testing.assert_allclose(norms, expected["norms"], rtol=1e-5, err_msg=split)
        for answer in answers:
            assert largest_difference(answer[stage]["weights"], expected["weights"]) < 0.02 * lr, split
            assert largest_difference(answer[stage]["extra"], expected["extra"]) < 0.02 * lr, split


def test_ranks_agree_bit_for_bit(runs: dict) -> None:
    for split, answers in runs.items():
        for stage in answers[0]:
            for other in answers[1:]:
                assert largest_difference(answers[0][stage]["weights"], other[stage]["weights"]) == 0.0, (split, stage)
                assert largest_difference(answers[0][stage]["extra"], other[stage]["extra"]) == 0.0, (split, stage)


@pytest.mark.parametrize("stage", ["1-bf16", "2-bf16"])
def test_bf16_stays_near_the_reference(runs: dict, expected: dict, stage: str) -> None:
    for split, answers in runs.items():
        losses = np.array([values["loss"] for _, values in answers[0][stage]["lines"]])
        assert np.all(np.isfinite(losses)), split
        assert np.abs(losses / np.array(expected["losses"]) - 1).max() < 0.05, split


def test_the_run_learns(expected: dict) -> None:
    assert np.mean(expected["losses"][-5:]) < 0.7 * np.mean(expected["losses"][:5])


def test_every_row_is_seen_once_an_epoch(runs: dict) -> None:
    for split, answers in runs.items():
        for stage in answers[0]:
            for epoch in range(EPOCHS):
                rows = [row for answer in answers for e, _, rows in answer[stage]["seen"] if e == epoch for row in rows]
                assert sorted(rows) == list(range(34)), (split, stage, epoch)
