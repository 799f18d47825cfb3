"""What a fine-tuning recipe says, checked against itself."""

from __future__ import annotations

import math

from gamut.recipe.policy import RATE, UNIT_HOP
from gamut.recipe.schema import Recipe
from gamut.recipe.views import Problem


def finetuning_that_cannot_be(recipe: Recipe) -> list[Problem]:
    """Folds, views and averages that contradict each other."""
    folds = recipe.folds
    found: list[Problem] = []
    if not folds.test or not all(folds.test):
        found.append((("folds.test",), "folds.test needs at least one round of at least one fold"))
    for test in folds.test:
        for key, others in (("train", folds.train), ("validation", folds.validation)):
            both = [fold for fold in others or [] if fold in test]
            if both:
                found.append(
                    ((f"folds.{key}", "folds.test"), f"fold {both[0]} is in folds.{key} and in a round of folds.test")
                )
    if folds.column in recipe.subset:
        found.append(
            (
                ("subset",),
                f"subset.{folds.column} is what folds says: set folds.train, folds.validation and folds.test instead",
            )
        )
    if recipe.features:
        found += _on_features(recipe)
    if recipe.encoder:
        found += _with_encoder(recipe)
    first = recipe.finetune.average_from
    if first is not None and first > recipe.epochs:
        found.append(
            (
                ("finetune.average_from", "epochs"),
                f"finetune.average_from ({first}) is after the last of {recipe.epochs} epochs: there would be no mean",
            )
        )
    if recipe.finetune.take_head and not recipe.init:
        found.append((("finetune.take_head", "init"), "finetune.take_head needs an init to take the classifier from"))
    if recipe.views.count != 1:
        found.append((("views.count",), f"fine-tuning sees one view a clip, not {recipe.views.count}"))
    if recipe.views.local_count:
        found.append((("views.local_count",), "fine-tuning sees one view a clip: views.local_count must be 0"))
    return found


def _on_features(recipe: Recipe) -> list[Problem]:
    """What makes no sense where clips are cached features."""
    augment = recipe.augment
    found: list[Problem] = []
    if recipe.step.clips is None:
        found.append(
            (("step.clips", "features"), "cached features are batched by number: set step.clips, not step.tokens")
        )
    for key in ("frequency_mask", "noise", "drop_tokens"):
        if getattr(augment, key):
            found.append(
                ((f"augment.{key}", "features"), f"augment.{key} is for sound: cached features have none of it")
            )
    if recipe.finetune.take_head:
        found.append(
            (("finetune.take_head", "features"), "finetune.take_head is for sound: a head is all there is here")
        )
    if recipe.views.roll:
        found.append((("views.roll", "features"), "views.roll is for sound: cached features have none of it"))
    return found


def _with_encoder(recipe: Recipe) -> list[Problem]:
    """What makes no sense where an encoder is fine-tuned with its head."""
    found: list[Problem] = []
    augment, views = recipe.augment, recipe.views
    if recipe.features:
        found.append((("features", "encoder"), "features are of a frozen encoder: with encoder set features to ''"))
    covers = math.ceil(((recipe.head.seconds * RATE - 400) / UNIT_HOP + 1) / 16) * 16
    if views.frames != covers or not views.pad or list(views.resolutions) != [1.0] or list(views.poolings) != [1]:
        found.append(
            (
                ("views.frames", "head.seconds"),
                f"a window of head.seconds = {recipe.head.seconds:g} is covered by views.frames = {covers} at 10 ms, "
                f"padded; it is {views.frames}",
            )
        )
    for key in ("frequency_mask", "noise", "drop_tokens"):
        if getattr(augment, key):
            found.append(((f"augment.{key}", "encoder"), f"augment.{key} is not for an encoder with a head"))
    return found
