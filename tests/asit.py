"""A tiny ASiT objective for tests, and one whole global step of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gamut.data.batch import PackedBatch
from gamut.recipe import schema
from gamut.train.objective import Moment
from pretrain.asit import Asit
from tests.close import assert_close
from tests.packs import part

Step = tuple[float, dict[str, float], dict[str, torch.Tensor]]  # loss, metrics, gradients
NOW = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.25)
RECIPE = schema.Recipe(
    model=schema.Model(dim=32, depth=2, heads=2, table_frames=96, drop_path=0.2),
    views=schema.Views(count=2, frames=96),
    asit=schema.Asit(hidden=32, bottleneck=16, prototypes=24),
)


def objective(**changes: object) -> Asit:
    recipe = replace(RECIPE, asit=replace(RECIPE.asit, **changes))  # type: ignore[arg-type]
    return Asit(recipe, -4.0, 4.0, torch.device("cpu"))


def assert_same_metrics(found: dict[str, float], expected: dict[str, float]) -> None:
    """Metrics of one step split in two ways: within 1e-5, but a spread, the small difference of two numbers of about
    1 / prototypes, within 1e-6 of these (and its share of what it could be within 1e-6 of all)."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        terms = 1.0 if "/spread_share" in name else 1 / RECIPE.asit.prototypes if "/spread" in name else 0.0
        assert found[name] == pytest.approx(value, rel=1e-5, abs=max(1e-6 * terms, 1e-12)), name


def assert_same_step(found: Step, expected: Step) -> None:
    """One step split in two ways. The key bias has no true gradient."""
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert_same_metrics(found[1], expected[1])
    for name, gradient in expected[2].items():
        if not name.endswith("attn.qkv.bias"):
            assert gradient.any(), name
            assert_close(found[2][name], gradient, 3e-6, name)


def assert_neighbours_do_not_matter(task: Asit, batch: PackedBatch) -> None:
    """The losses of a batch's clips are the sum of those of each by itself."""
    totals = dict.fromkeys(task.count_names, 1e4)
    together = task.loss(task.model, task.prepare(batch, NOW), totals, NOW)[1]
    each = [part(batch, clip, clip + 1) for clip in range(batch.clips)]
    alone = [task.loss(task.model, task.prepare(one, NOW), totals, NOW)[1] for one in each]
    for name, value in together.items():
        assert float(value) == pytest.approx(float(sum(one[name] for one in alone)), rel=2e-6), name


def whole_step(task: Asit, batches: list) -> Step:
    """Loss, metrics and gradients of one global step over micro-batches, up to its update."""
    prepared = [task.prepare(batch, NOW) for batch in batches]
    totals = dict(zip(task.count_names, sum(p.counts for p in prepared).tolist(), strict=True))
    task.model.zero_grad()
    loss, metrics = 0.0, {}
    for micro in prepared:
        share, values = task.loss(task.model, micro, totals, NOW)
        share.backward()
        loss += share.item()
        for name, value in values.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    gradients = {name: p.grad.clone() for name, p in task.model.named_parameters()}
    return loss, metrics | {name: float(value) for name, value in task.predictions().items()}, gradients
