"""Elastic ASiT: on packs of native length and mixed resolution every clip's losses are its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch
from gamut.plan import plan_epoch
from gamut.recipe import schema
from gamut.recipe.policy import training_policy
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from pretrain.asit import Asit
from tests.asit import NOW, RECIPE, assert_same_metrics, whole_step
from tests.close import assert_close
from tests.packs import packed, part

POOLINGS = ("cls", "attention", "mean")


def elastic(pooling: str = "cls", **asit: object) -> Asit:
    model = replace(RECIPE.model, positions="factorised", pooling=pooling, pooling_heads=2)
    recipe = replace(RECIPE, model=model, asit=replace(RECIPE.asit, hidden=96, bottleneck=48, **asit))
    return Asit(recipe, -4.0, 4.0, torch.device("cpu"))


def mixed() -> PackedBatch:
    """Five clips of two views in two packs: native lengths from the shortest to beyond the table, four resolutions."""
    frames = [48, 48, 16, 16, 192, 192, 96, 96, 80, 80]
    hops = [160, 160, 160, 160, 192, 192, 640, 640, 320, 320]
    return packed(frames, views=2, packs=(3, 2), hops=hops)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_clips_losses_do_not_depend_on_its_neighbours(pooling: str) -> None:
    task, batch = elastic(pooling), mixed()
    totals = {"masked_pixels": 5e4, "local_tokens": 500.0, "class_pairs": 10.0, "pixels": 1e5, "neighbours": 10.0}
    together = task.loss(task.model, task.prepare(batch, NOW), totals, NOW)[1]
    alone = [task.loss(task.model, task.prepare(part(batch, clip, clip + 1), NOW), totals, NOW)[1] for clip in range(5)]
    for name, value in together.items():
        total = sum(metrics[name] for metrics in alone)
        assert float(value) == pytest.approx(float(total), rel=1e-6), name
    beside = [part(batch, first, first + 2) for first in range(4)]  # clip 1 beside clip 0, then beside clip 2
    pairs = [task.loss(task.model, task.prepare(two, NOW), totals, NOW)[0].item() for two in beside]
    for first, pair in enumerate(pairs):
        assert pair == pytest.approx(float(alone[first]["loss"] + alone[first + 1]["loss"]), rel=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_outputs_of_a_pack_are_those_of_its_clips_one_at_a_time(pooling: str) -> None:
    task, batch = elastic(pooling), mixed()
    task.model.eval()

    def outputs(batch: PackedBatch):
        views = task.prepare(batch, NOW).inputs
        everything = torch.arange(len(views.hidden))
        with torch.no_grad():
            return task.model(views.hidden, views.student, None, everything, everything)

    together = outputs(batch)
    alone = [outputs(part(batch, clip, clip + 1)) for clip in range(5)]
    for name in ("classes", "data", "pixels"):
        joined = torch.cat([getattr(one, name) for one in alone])
        assert (getattr(together, name) - joined).abs().max() <= 1e-5, name


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_step_of_mixed_lengths_does_not_depend_on_how_it_is_split(pooling: str) -> None:
    batch = mixed()
    one = whole_step(elastic(pooling, mask_fill="clip"), [batch])
    two = whole_step(elastic(pooling, mask_fill="clip"), [part(batch, 0, 3), packed([], views=2), part(batch, 3, 5)])
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    for name, gradient in one[2].items():
        if not name.endswith(("attn.qkv.bias", "to_kv.bias")):  # keys' biases have no true gradient, only rounding
            assert_close(two[2][name], gradient, 3e-6, name)
            assert gradient.any(), name


def test_attention_pooling_takes_the_place_of_class_tokens() -> None:
    task = elastic("attention")
    views = task.prepare(mixed(), NOW).inputs
    assert views.student.tokens == len(views.hidden)
    assert not len(views.student.cls)
    assert whole_step(task, [mixed()])[2]["backbone.attn_pool.query"].any()
    task.model.eval()
    pooled = task.model.backbone.pool(task.model.backbone(views.hidden, views.student), views.student)
    with torch.no_grad():
        student = task.model.projection(pooled).view(5, 2, -1)
        clean = task.teacher.backbone.pool(task.teacher.backbone(views.clean, views.teacher), views.teacher)
        target = torch.softmax(task.teacher.projection(clean) / 0.07, -1).view(5, 2, -1).flip(1)
        expected = -(target * torch.log_softmax(student / 0.1, -1)).sum(-1).mean()
        prepared = task.prepare(mixed(), NOW)
        totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
        found = task.loss(task.model, prepared, totals, NOW)[1]["loss/global"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def corpus(folder: Path, samples: list[int]) -> Index:
    rng = np.random.default_rng(0)
    source = folder / "source" / "sound"
    source.mkdir(parents=True)
    for number, size in enumerate(samples):
        wave = rng.normal(scale=2000, size=size).round().astype(np.int16)
        soundfile.write(source / f"{number}.wav", wave, 16000, subtype="PCM_16")
    assert shards(["convert", "folder", str(folder / "source"), str(folder / "set"), "--workers", "1"]) == 0
    return Index.open(folder / "set")


def a_step(index: Index, views: schema.Views, step: schema.Step) -> tuple:
    recipe = replace(RECIPE, views=views, step=step, asit=replace(RECIPE.asit, hidden=96, bottleneck=48))
    epoch = plan_epoch(index.table(), recipe.seed, 0, training_policy(recipe))
    task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
    packs = [assemble(index, epoch, [pack]) for pack in range(epoch.steps * epoch.packs)]
    assert sum(batch.clips for batch in packs) == len(index)
    return whole_step(task, packs), [batch.clips for batch in packs]


@pytest.mark.parametrize("crop", [None, 64])
def test_on_views_of_equal_length_it_equals_the_fixed_form(crop: int | None, tmp_path: Path) -> None:
    """All clips in one step, packed by tokens at native length, and padded or cut to that length, 3 clips a pack."""
    samples = [95 * 160 + 400] * 9 if crop is None else [20_000 + 1_000 * number for number in range(9)]
    index = corpus(tmp_path, samples)
    fixed, packs = a_step(index, schema.Views(count=2, frames=crop or 96), schema.Step(packs=3, clips=3))
    native = schema.Views(count=2, frames=crop, pad=False)
    budget = schema.Step(packs=5, tokens=2 * 2 * ((crop or 96) // 2 + 1) + 7)
    packed_by_tokens, others = a_step(index, native, budget)
    assert packs == [3, 3, 3]
    assert sorted(others, reverse=True) == [2, 2, 2, 2, 1]
    assert packed_by_tokens[0] == pytest.approx(fixed[0], rel=1e-5)
    assert_same_metrics(packed_by_tokens[1], fixed[1])
    for name, gradient in fixed[2].items():
        if not name.endswith("attn.qkv.bias"):
            assert_close(packed_by_tokens[2][name], gradient, 1e-5, name)
