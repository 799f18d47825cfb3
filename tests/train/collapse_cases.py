"""What ranks do with a teacher that collapses; in a module of its own, so that a rank can import it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from toy import ToyLoader, teach

from gamut.data.batch import PackedBatch
from gamut.errors import RunError
from gamut.recipe import schema
from gamut.train.objective import Moment
from gamut.train.partitions import fill, shape
from gamut.train.world import World
from pretrain.asit import Asit
from tests.asit import RECIPE
from tests.sounds import sounds


class SoundLoader(ToyLoader):
    """The clips of a toy epoch as sounds."""

    def __iter__(self) -> Iterator[tuple[int, list[PackedBatch]]]:
        for step, batches in super().__iter__():
            yield step, [sounds(batch.row.tolist(), epoch=batch.epoch) for batch in batches]


class Struck(Asit):
    """Whose teacher says the same of everything, from the end of a step on."""

    strike = -1

    @torch.no_grad()
    def after_step(self, at: Moment) -> dict[str, float]:
        values = super().after_step(at)
        if at.step == self.strike:
            last = self.teacher.projection.mlp[-1]
            fill(last.weight, torch.zeros(shape(last.weight)))
            fill(last.bias, torch.linspace(-100.0, 100.0, shape(last.bias)[0]))
        return values


def collapsing(
    world: World, folder: Path, recipe: schema.Recipe, asit: schema.Asit, strike: int, attempts: int
) -> list[dict | str]:
    """Attempts at a tiny run, struck after a step (-1: none) wherever it is trained on; how each ended."""
    ends: list[dict | str] = []
    for _ in range(attempts):
        task = Struck(replace(RECIPE, asit=asit), -4.0, 4.0, world.device)
        task.strike = strike
        try:
            ends.append(teach(world, folder, recipe, task, make_loader=SoundLoader))
        except RunError as error:
            ends.append(str(error))
    return ends
