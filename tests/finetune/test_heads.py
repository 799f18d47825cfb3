"""Heads on cached features: mixing, masking, smoothing, against the same by hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.heads import TagFeatures, hidden_steps, loader_of, mask_time, mix
from gamut.data.batch import PackedBatch
from gamut.features import write_cache
from gamut.recipe import schema
from gamut.train.objective import Moment
from tests.close import assert_close
from tests.packs import packed

NOW = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.0)
SHAPE = (3, 25, 16)


def batch(clips: int = 4, mixed: bool = True) -> PackedBatch:
    """Clips of classes 0, 1, ...; clip 0 mixed with clip 2 at 0.75, clip 2 with clip 1 at 0.5, the others alone."""
    made = packed([16] * clips, [[clip] for clip in range(clips)])
    features = torch.randn(clips, *SHAPE, generator=torch.Generator().manual_seed(0)).half()
    made = replace(
        made, waveform=made.waveform[:0], offset=torch.zeros(clips + 1, dtype=torch.int64), features=features
    )
    if not mixed:
        return made
    partner, weight = [2, -1, 1] + [-1] * (clips - 3), [0.75, 1.0, 0.5] + [1.0] * (clips - 3)
    labels = [one for one in partner if one >= 0]
    return replace(
        made,
        partner_clip=torch.tensor(partner),
        partner_weight=torch.tensor(weight),
        partner_row=torch.tensor(partner),
        partner_label_offset=torch.tensor([0] + [one >= 0 for one in partner]).cumsum(0),
        partner_label=torch.tensor(labels),
    )


def task(loss: str = "ce", time_mask: int = 0, smoothing: float = 0.0, **head: object) -> TagFeatures:
    recipe = schema.Recipe(
        stage="finetune",
        features="cache",
        head=schema.Head(**({"kind": "tl_tr", "dim": 8} | head)),  # type: ignore[arg-type]
        augment=schema.Augment(mixup=0.5, time_mask=time_mask),
        finetune=schema.Finetune(loss=loss, label_smoothing=smoothing),
    )
    return TagFeatures(recipe, 5, SHAPE, {"name": "toy"}, seed=0, device=torch.device("cpu"))


def test_features_are_mixed_with_their_partner_in_float32() -> None:
    made = batch()
    x = made.features.float()
    found = mix(made)
    assert_close(found[0], 0.75 * x[0] + 0.25 * x[2])
    assert_close(found[2], 0.5 * x[2] + 0.5 * x[1])
    assert torch.equal(found[[1, 3]], x[[1, 3]])
    assert mix(batch(mixed=False)).dtype == torch.float16


def test_time_masks_hide_a_run_of_steps_in_all_layers() -> None:
    """U[0, 10) of 25 steps: widths 0 to 9 alike often, zeros, any place, the same whatever else is in the batch."""
    clips = 2000
    ids, draw, view = torch.arange(clips) * 7919, torch.zeros(clips, dtype=torch.int64), torch.zeros(clips).long()
    spans = hidden_steps(clips, 25, (5, 1, ids, draw, view), 10, torch.device("cpu"))
    masked = mask_time(torch.ones(clips, 2, 25, 3), spans) == 0
    assert torch.equal(masked.all((1, 3)), masked.any(3).any(1))
    hidden = masked[:, 0, :, 0]
    widths = hidden.sum(1)
    assert np.bincount(widths.numpy(), minlength=10).min() > 150
    assert int(widths.max()) == 9
    assert (hidden.long().diff(dim=1) == 1).sum(1).max() <= 1
    assert hidden.float().mean(0).min() > 0.02
    some = torch.tensor([11, 500])
    again = hidden_steps(2, 25, (5, 1, ids[some], draw[some], view[some]), 10, torch.device("cpu"))
    assert torch.equal(again, spans[some])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_the_loss_is_torch_s_on_mixed_and_smoothed_targets(kind: str, smoothing: float) -> None:
    objective = task(kind, smoothing=smoothing)
    made = batch()
    loss, metrics = objective.loss(objective.model, objective.prepare(made, NOW), {"clips_with_labels": 4.0}, NOW)
    target = torch.zeros(4, 5)
    target[0, 0], target[0, 2], target[1, 1], target[2, 2], target[2, 1], target[3, 3] = 0.75, 0.25, 1, 0.5, 0.5, 1
    logits = objective.model(mix(made))
    if kind == "ce":
        expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
    else:  # positives 0.9, negatives 0.1 / classes
        expected = F.binary_cross_entropy_with_logits(logits, target * (1 - smoothing) + (1 - target) * smoothing / 5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["mixup/partner_holes"].item() == 0


def test_scores_are_of_clean_features() -> None:
    objective = task(time_mask=10)
    made = batch()
    assert_close(objective.logits(made), objective.model(made.features.float()))


@pytest.mark.parametrize("kind", ["last_mlp", "wa_mlp", "wa_tr", "tl_tr"])
def test_an_empty_pack_gives_zero_loss_and_reaches_every_parameter(kind: str) -> None:
    objective = task(time_mask=10, kind=kind)
    whole = batch()
    empty = replace(
        packed([], []), features=whole.features[:0], partner_clip=torch.zeros(0, dtype=torch.int64),
        partner_weight=torch.zeros(0), partner_label_offset=torch.zeros(1, dtype=torch.int64),
        partner_label=torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip
    loss, _ = objective.loss(objective.model, objective.prepare(empty, NOW), {"clips_with_labels": 3.0}, NOW)
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None for parameter in objective.model.parameters())


def test_a_head_on_the_last_layer_is_sent_no_other(tmp_path: Path) -> None:
    """The same bits as from whole records."""
    cache = write_cache(tmp_path, np.random.default_rng(0).normal(size=(6, *SHAPE)))
    rows = np.array([4, 0, 2])
    for kind, layers in (("last_mlp", 1), ("wa_mlp", 3)):
        few = loader_of(cache, schema.Head(kind)).keywords["features"].read(rows)  # type: ignore[attr-defined]
        assert few.shape == (3, layers, *SHAPE[1:])
        model = task(kind=kind).model
        assert torch.equal(model(torch.from_numpy(few).float()), model(torch.from_numpy(cache.read(rows)).float()))


def test_what_is_kept_beside_the_weights_says_what_they_are_of() -> None:
    said = task().described()
    assert said == {
        "head": asdict(schema.Head("tl_tr", 8)),
        "shape": [3, 25, 16],
        "encoder": {"name": "toy"},
    }
