"""Where trained models are scored in a sweep: over lengths, over resolutions, and as each of them takes a clip itself.

A standard AST cuts or pads every clip to the length in question; ElasticAST cuts a longer one and never pads (Feng et
al., 3.3). What a recipe's views say tells which of the two its model is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gamut.errors import RecipeError
from gamut.numbers import HOP, PATCH
from gamut.recipe import schema
from gamut.recipe.check import check
from gamut.recipe.policy import hop

LENGTHS = tuple(
    sorted({*range(256, 3073, 128), 400, 1600})
)  # frames: the paper's grid, and where its ASTs were trained
RESOLUTIONS = tuple(c / 10 for c in range(10, 41, 2))  # C


@dataclass(frozen=True)
class Point:
    """One way of giving clips to a model: axis `length` (value: frames), `resolution` (value: C), or `native`."""

    axis: str
    value: float = 0.0

    def __str__(self) -> str:
        if self.axis == "native":
            return "native"
        return f"{self.value:g} frames" if self.axis == "length" else f"C = {self.value:g}"


def is_standard(views: schema.Views) -> bool:
    """Whether a model with these views has one length for all clips (the standard AST); else it takes any."""
    return views.pad and (views.frames is not None or views.pad_to is not None)


def frames_of(views: schema.Views) -> int:
    """Frames of a standard AST's views, at the first of their resolutions and poolings."""
    if views.frames is not None:
        return views.frames
    assert views.pad_to is not None
    return max(PATCH, views.pad_to * HOP // (hop(views.resolutions[0]) * views.poolings[0]) // PATCH * PATCH)


def at(recipe: schema.Recipe, point: Point) -> schema.Recipe:
    """The recipe of a trained model as it is to be scored at a point.

    A standard AST off its length has the middle of its table of positions, or the table stretched (`table_like: ast`).
    At a C, a model that was trained on pooled frames averages C of them where C is a whole number; all others get a hop
    of 10 ms * C. A standard AST keeps its length in time. Raises RecipeError for a point that cannot be.
    """
    views, model = recipe.views, recipe.model
    standard = is_standard(views)
    views = replace(views, random=False, resolutions=views.resolutions[:1], poolings=views.poolings[:1], roll=0.0)
    views = replace(views, too_long="cut")  # at a point every clip has the point's length, whatever training allowed
    if point.axis == "length":
        frames = int(point.value)
        if frames != point.value or frames < PATCH or frames % PATCH:
            raise RecipeError(f"A length is a multiple of 16 frames (a patch is 16 frames wide), not {point.value:g}.")
        if standard:
            views = replace(views, frames=frames, pad_to=None, max_frames=None)
        else:
            views = replace(views, frames=None, max_frames=frames, max_seconds=None)
    elif point.axis == "resolution":
        if standard:
            in_time = frames_of(views) * hop(views.resolutions[0]) * views.poolings[0] / HOP
            views = replace(views, frames=None, pad_to=views.pad_to or math.ceil(in_time / PATCH) * PATCH)
        if max(recipe.views.poolings) > 1 and float(point.value).is_integer():
            views = replace(views, resolutions=[1.0], poolings=[int(point.value)])
        else:
            views = replace(views, resolutions=[point.value], poolings=[1])
    if standard and model.positions == "learned":
        model = replace(model, table_like="ast")
    changed = replace(recipe, views=views, model=model, step=schema.Step(packs=1, clips=1))
    check(changed)
    return changed
