"""What ranks do in these tests; in a module of its own, so that a rank can import it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from toy import Toy, teach, toy_recipe

from gamut.recipe import schema
from gamut.train.world import World


def staged(stage: int, **changes: object) -> schema.Recipe:
    return toy_recipe(deepspeed={"zero_optimization": {"stage": stage}}, **changes)


def every_stage(world: World, folder: Path, per_forward: int = 1) -> dict[str, dict]:
    """The toy run with each stage, and with bf16 where there is a stage."""
    answers = {}
    for stage, precision in [(0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16")]:
        recipe = staged(stage, precision=precision, checkpoint=schema.Checkpoint(every_epochs=0.0, every_minutes=1e9))
        recipe = replace(recipe, loader=replace(recipe.loader, packs_per_forward=per_forward))
        name = f"{stage}-{precision}"
        answers[name] = teach(world, folder / name, recipe, Toy())
    return answers
