"""What a recipe says a clip becomes, checked against itself."""

from __future__ import annotations

import math

from gamut.patches import columns, kept, rows
from gamut.recipe.policy import UNIT_HOP, hop
from gamut.recipe.schema import Recipe

Problem = tuple[tuple[str, ...], str]  # the keys concerned, and a sentence without its end


def views_that_cannot_be(recipe: Recipe) -> list[Problem]:
    """Lengths, resolutions and crops that contradict each other or the step."""
    views, step = recipe.views, recipe.step
    found: list[Problem] = []
    for key, values in (("views.resolutions", views.resolutions), ("views.poolings", views.poolings)):
        if not values or not all(0 < value < math.inf for value in values):
            found.append(((key,), f"{key} needs at least one number above 0, not {values}"))
    if found:
        return found
    for c in views.resolutions:
        if abs(c * UNIT_HOP - hop(c)) > 1e-6:
            found.append(
                (
                    ("views.resolutions",),
                    f"views.resolutions: a hop of 10 ms x {c:g} is no whole number of samples at 16 kHz; "
                    f"the nearest that is: {max(hop(c), 1) / UNIT_HOP:g}",
                )
            )
    if views.pad_to is not None and (views.frames is not None or not views.pad):
        found.append(
            (
                ("views.pad_to", "views.frames", "views.pad"),
                "views.pad_to is a fixed length in time, the same for every resolution: it takes the place of "
                "views.frames (set that to null) and needs views.pad",
            )
        )
    if views.pad_with == "zero" and (not views.pad or (views.frames is None and views.pad_to is None)):
        found.append(
            (
                ("views.pad_with",),
                "views.pad_with: zero fills up clips to a fixed length: it needs views.frames or views.pad_to, "
                "and views.pad",
            )
        )
    if views.local_count and views.frames is not None and views.local_frames >= views.frames:
        found.append(
            (
                ("views.local_frames", "views.frames", "views.local_count"),
                f"local crops are shorter than the views: views.local_frames ({views.local_frames}) must be below "
                f"views.frames ({views.frames}), such as {max(views.frames // 3 // 16, 1) * 16}, or "
                "views.local_count 0",
            )
        )
    longest = views.frames or views.pad_to or views.max_frames
    if step.tokens is not None and longest and not found:
        if views.pad_to:
            longest = int(longest / (min(views.resolutions) * min(views.poolings))) // 16 * 16
        one = _tokens(recipe, longest) * views.count + _tokens(recipe, views.local_frames) * views.local_count
        local = f" and {views.local_count} x {views.local_frames}" if views.local_count else ""
        if one > step.tokens:
            found.append(
                (
                    ("step.tokens", "views.frames", "views.max_frames", "views.local_count"),
                    f"step.tokens ({step.tokens}) does not hold one clip of {one} tokens "
                    f"({views.count} x {longest}{local} frames, class tokens included)",
                )
            )
    return found


def _tokens(recipe: Recipe, frames: int) -> int:
    model = recipe.model
    patches = columns(frames, model.stride) * rows(model.stride)
    return kept(patches, recipe.augment.drop_tokens) + (model.pooling == "cls") + model.distilled
