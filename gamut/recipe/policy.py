"""From a recipe to the policy of its plan."""

from __future__ import annotations

from typing import Any

from gamut.numbers import HOP, RATE
from gamut.plan import Policy
from gamut.recipe.schema import Recipe

# The policy's fields that can contradict each other, and the keys that they come from.
KEYS = {
    "clips": "step.clips",
    "tokens": "step.tokens",
    "crop_frames": "views.frames",
    "max_frames": "views.max_frames",
    "pad": "views.pad",
    "pad_to": "views.pad_to",
    "views": "views.count",
    "local_views": "views.local_count",
    "roll": "views.roll",
    "drop_tokens": "augment.drop_tokens",
    "cached": "features",
    "mixup": "augment.mixup",
    "mixtures": "asit.mixtures",
}


def training_policy(recipe: Recipe) -> Policy:
    """The plan's policy for training: the recipe's step, views and packer, mixup and token dropout, mixtures."""
    return Policy(**training_fields(recipe))


def training_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of `training_policy`, even of a recipe that contradicts itself."""
    views, plan, augment = recipe.views, recipe.plan, recipe.augment
    return dict(
        **_common(recipe),
        views=views.count,
        random_crop=views.random,
        hops=tuple(hop(c) for c in views.resolutions),
        pools=tuple(views.poolings),
        local_views=views.local_count,
        local_frames=views.local_frames,
        roll=views.roll,
        drop_tokens=augment.drop_tokens,
        hidden=recipe.asit.unseen,
        clones=recipe.asit.clones,
        mixtures=recipe.asit.mixtures,
        mixup=augment.mixup,
        mixup_beta=augment.mixup_beta,
        packer=plan.packer,
        lookahead=plan.lookahead,
        window=plan.window,
        shuffle=plan.shuffle,
        locality=plan.locality,
        draws=plan.draws,
        block=plan.block,
        proportions=tuple(recipe.mixture.values()) if len(recipe.mixture) > 1 else (),
    )


def evaluation_policy(recipe: Recipe) -> Policy:
    """The plan's policy for evaluation: one view a clip, its first frames, in index order, at the first of the
    recipe's resolutions and poolings."""
    views = recipe.views
    return Policy(
        **_common(recipe),
        views=1,
        random_crop=False,
        hops=(hop(views.resolutions[0]),),
        pools=(views.poolings[0],),
        packer="next_fit",
        shuffle=False,
    )


def hop(resolution: float) -> int:
    """Samples between two frames at 10 ms * C."""
    return round(resolution * HOP)


def _common(recipe: Recipe) -> dict[str, Any]:
    views, step = recipe.views, recipe.step
    native = views.frames is None and views.pad_to is None
    return {
        "packs": step.packs,
        "clips": step.clips,
        "tokens": step.tokens,
        "max_clips": step.max_clips,
        "crop_frames": views.frames,
        "pad": views.pad,
        "pad_to": views.pad_to,
        "max_frames": views.max_frames,
        "max_samples": round(views.max_seconds * RATE) if native and views.max_seconds is not None else None,
        "too_long": views.too_long,
        "class_token": recipe.model.pooling == "cls",
        "cached": bool(recipe.features),
        "distillation_token": recipe.model.distilled,
        "stride": recipe.model.stride,
    }
