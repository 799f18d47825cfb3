"""From a recipe to what the plan is asked for."""

from __future__ import annotations

from gamut.plan import Policy
from gamut.recipe.schema import Recipe


def training_policy(recipe: Recipe) -> Policy:
    """The plan's policy for training: the recipe's step, views and packer."""
    views, step, plan = recipe.views, recipe.step, recipe.plan
    return Policy(
        packs=step.packs,
        clips=step.clips,
        tokens=step.tokens,
        max_clips=step.max_clips,
        views=views.count,
        crop_frames=views.frames,
        random_crop=views.random,
        pad=views.pad,
        max_frames=views.max_frames,
        too_long=views.too_long,
        class_token=recipe.model.pooling == "cls",
        packer=plan.packer,
        lookahead=plan.lookahead,
        window=plan.window,
        shuffle=plan.shuffle,
        locality=plan.locality,
    )


def evaluation_policy(recipe: Recipe) -> Policy:
    """The plan's policy for evaluation: one view a clip, its first frames, in index order."""
    views, step = recipe.views, recipe.step
    return Policy(
        packs=step.packs,
        clips=step.clips,
        tokens=step.tokens,
        max_clips=step.max_clips,
        views=1,
        crop_frames=views.frames,
        random_crop=False,
        pad=views.pad,
        max_frames=views.max_frames,
        too_long=views.too_long,
        class_token=recipe.model.pooling == "cls",
        packer="next_fit",
        shuffle=False,
    )
