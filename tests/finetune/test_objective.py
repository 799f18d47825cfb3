"""The supervised losses against torch's own, and the scores' independence of neighbours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finetune.objective import Classify, multi_hot
from gamut.recipe import schema
from gamut.train.objective import Moment
from tests.packs import packed, part

MODEL = schema.Model(dim=32, depth=2, heads=2, table_frames=96, drop_path=0.0)
NOW = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.0)


def objective(**finetune: object) -> Classify:
    recipe = schema.Recipe(stage="finetune", model=MODEL, finetune=schema.Finetune(**finetune))  # type: ignore[arg-type]
    return Classify(recipe, 5, -4.0, 4.0, seed=0, device=torch.device("cpu"))


def test_labels_become_rows_of_ones() -> None:
    got = multi_hot(packed([16, 16, 16], [[1], [], [0, 4]]), 5)
    assert got.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch_s(smoothing: float) -> None:
    task = objective(loss="ce", label_smoothing=smoothing)
    clips = packed([32, 96, 48], [[1], [3], [0]])
    loss, metrics = task.loss(task.model, task.prepare(clips, NOW), {"clips_with_labels": 3.0}, NOW)
    logits = task.logits(clips)
    expected = F.cross_entropy(logits, torch.tensor([1, 3, 0]), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    right = (logits.argmax(1) == torch.tensor([1, 3, 0])).float().mean()
    assert metrics["train/accuracy"].item() == pytest.approx(right.item())


def test_binary_cross_entropy_equals_torch_s_mean() -> None:
    task = objective(loss="bce")
    clips = packed([32, 64], [[1, 2], []])
    loss, _ = task.loss(task.model, task.prepare(clips, NOW), {"clips_with_labels": 2.0}, NOW)
    expected = F.binary_cross_entropy_with_logits(task.logits(clips), multi_hot(clips, 5))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_shares_of_micro_batches_sum_to_the_whole() -> None:
    task = objective()
    whole = packed([32, 96, 48, 16], [[1], [3], [0], [2]])
    parts = [(0, 1), (1, 4)]
    totals = {"clips_with_labels": 4.0}
    loss, _ = task.loss(task.model, task.prepare(whole, NOW), totals, NOW)
    shares = 0.0
    for first, last in parts:
        piece = part(whole, first, last)
        shares += task.loss(task.model, task.prepare(piece, NOW), totals, NOW)[0].item()
    assert shares == pytest.approx(loss.item(), rel=1e-6)


def test_an_empty_pack_gives_zero_loss_and_reaches_every_parameter() -> None:
    task = objective()
    empty = packed([], [])
    loss, _ = task.loss(task.model, task.prepare(empty, NOW), {"clips_with_labels": 3.0}, NOW)
    loss.backward()
    assert loss.item() == 0.0
    missing = [name for name, p in task.model.named_parameters() if p.grad is None and "mask" not in name]
    assert not missing
