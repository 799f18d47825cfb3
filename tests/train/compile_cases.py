"""What ranks do whose blocks are compiled; in a module of its own, so that a rank can import it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from collapse_cases import SoundLoader
from toy import teach

from gamut import compiler
from gamut.recipe import schema
from gamut.train.objective import Moment, Prepared
from gamut.train.world import World
from pretrain.asit import Asit
from tests.asit import RECIPE


class Stoppable(Asit):
    """With what `teach` wants to stop it."""

    before_step: Callable[[int], None] = staticmethod(lambda step: None)

    def prepare(self, batch: Any, at: Moment) -> Prepared:
        self.before_step(at.step)
        return super().prepare(batch, at)


def changing(world: World, folder: Path, recipe: schema.Recipe, kinds: list[bool], backend: str) -> list[dict]:
    """A tiny run in as many attempts as there are kinds, each compiled or not; all but the last stop after 3 steps."""
    compiler.BACKEND = backend
    ends = []
    for number, compiled in enumerate(kinds, 1):
        stop = 3 * number if number < len(kinds) else None
        now = replace(recipe, compute=schema.Compute(compile=compiled))
        task = Stoppable(RECIPE, -4.0, 4.0, world.device)
        ends.append(teach(world, folder, now, task, stop_after=stop, make_loader=SoundLoader))
    return ends
