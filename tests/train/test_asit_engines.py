"""The real objective on every kind of engine: the same training, and a teacher that is the same average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from asit_cases import RATE, activations, engines
from ranks import run


def assert_alike(mine: dict, theirs: dict, rtol: float = 1e-5, parts: float = 0.02) -> None:
    """Losses alike; weights and teacher within `parts` of a learning rate, but for the key biases: their true gradient
    is zero, and Adam makes steps of its rounding."""
    for here, there in zip(mine["lines"], theirs["lines"], strict=True):
        for name in ("loss", "loss/local", "loss/global", "loss/reconstruction", "loss/koleo", "gradient_norm"):
            assert here[name] == pytest.approx(there[name], rel=rtol), name
    for part in ("weights", "extra"):
        assert mine[part].keys() == theirs[part].keys()
        for name, value in mine[part].items():
            if not name.endswith("qkv.bias"):
                assert np.abs(value - theirs[part][name]).max() < parts * RATE, name


SPARSE = {"encode": "visible", "visible": 0.5, "clones": 2, "predictor": "blocks"}
FEATURES = SPARSE | {"predictor": "cross", "targets": "features", "mask_aligned": True}


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (1, {}),
        pytest.param(2, {}, marks=pytest.mark.long),
        pytest.param(2, SPARSE, marks=pytest.mark.long),
        pytest.param(2, FEATURES, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_engines_train_asit_alike_and_the_cut_teacher_is_the_whole_average(
    tmp_path: Path, size: int, changes: dict[str, object]
) -> None:
    answers = run(size, engines, tmp_path, changes)
    for answer in answers:
        for name, mine in answer.items():
            # bf16 students move by steps that their rounding may swallow; the teacher follows what they are.
            assert mine["from dense"] == 0.0, name
            swallowed = "norm" if changes and name == "3-bf16" else "none"  # a step next to 1 is the first that is
            assert not [weight for weight in mine["still"] if swallowed not in weight], name
            assert all(line["loss/koleo"] for line in mine["lines"]), name  # its clips have neighbours
        assert_alike(answer["3"], answer["1"])
        assert_alike(answer["oss"], answer["1"])
        assert answer["3-bf16"]["lines"][0]["loss"] == pytest.approx(answer["1"]["lines"][0]["loss"], rel=0.02)
    for name in answers[0]:
        for other in answers[1:]:
            for part in ("weights", "extra"):
                for key, value in other[name][part].items():
                    assert value.tobytes() == answers[0][name][part][key].tobytes(), (name, key)


@pytest.mark.parametrize(
    ("size", "engine", "precision"),
    [
        pytest.param(1, 1, "fp32", marks=pytest.mark.long),
        (2, 3, "fp32"),
        pytest.param(1, "oss", "bf16", marks=pytest.mark.long),
        pytest.param(2, "oss", "fp32", marks=pytest.mark.long),
        pytest.param(1, 2, "bf16", marks=pytest.mark.long),
        pytest.param(2, 3, "bf16", marks=pytest.mark.long),
    ],
)
def test_activations_computed_again_change_nothing(size: int, engine: int | str, precision: str) -> None:
    """Bit for bit, drop-path included; in bf16 too, where fairscale by itself would compute again in another type."""
    for answer in run(size, activations, engine, precision):
        for kind in ("recompute", "offload"):
            assert answer[kind]["lines"] == answer["keep"]["lines"], kind
            for part in ("weights", "extra"):
                for name, value in answer[kind][part].items():
                    assert value.tobytes() == answer["keep"][part][name].tobytes(), (kind, name)
