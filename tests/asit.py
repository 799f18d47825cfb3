"""A tiny ASiT objective for tests, and one whole global step of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gamut.recipe import schema
from gamut.train.objective import Moment
from pretrain.asit import Asit

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


def whole_step(task: Asit, batches: list) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
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
