"""Contradictions within a stage's own sections: pretraining, fine-tuning, extracting features."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gamut.numbers import CLIPS_A_SHARD, HOP, PATCH, RATE, WINDOW
from gamut.recipe.schema import Recipe

Problem = tuple[tuple[str, ...], str]  # the keys concerned, and a sentence without its end


def pretraining(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions in any pretraining, and in that of ASiT."""
    if recipe.objective == "asit":
        yield from _asit(recipe)
    if recipe.model.pooling in ("rows", "frames"):
        yield (
            ("model.pooling",),
            f"model.pooling {recipe.model.pooling} is a way to classify, for fine-tuning: choose cls, attention or "
            "mean",
        )
    if recipe.optim.layer_decay != 1 or recipe.optim.head_scale != 1:
        yield (
            ("optim.layer_decay", "optim.head_scale"),
            "optim.layer_decay and optim.head_scale are for fine-tuning: in pretraining everything learns at one rate, "
            "so leave them at 1",
        )


def _asit(recipe: Recipe) -> Iterator[Problem]:
    """Losses, masks and heads that contradict each other, the views or the model."""
    asit, views, step, model, optim = recipe.asit, recipe.views, recipe.step, recipe.model, recipe.optim
    least = asit.mask_target_least
    bound = "step.max_clips" if step.clips is None else "step.clips"
    of_others = {
        "asit.weight_koleo": asit.weight_koleo > 0,
        "asit.mask_fill": asit.mask_fill == "clip",
        "asit.mask_copied": asit.mask_copied > 0,
    }
    others = [key for key, on in of_others.items() if on]
    if not (asit.weight_reconstruction or asit.weight_local or asit.weight_global):
        yield (
            ("asit.weight_reconstruction",),
            "one of asit.weight_reconstruction, asit.weight_local and asit.weight_global must be above 0",
        )
    if others and (step.clips or step.max_clips) == 1:
        yield (
            (*others, bound),
            f"{' and '.join(others)} need another clip in the same pack: {bound} must be above 1",
        )
    if asit.weight_global and views.count != 2:
        yield (
            ("asit.weight_global", "views.count"),
            f"the global loss compares two views: views.count must be 2 (it is {views.count}) or asit.weight_global 0",
        )
    if (
        model.pooling == "attention"
        and not asit.weight_global
        and not (asit.weight_koleo and asit.koleo_on == "pooled")
    ):
        yield (
            ("asit.weight_global", "model.pooling"),
            "attention pooling is trained by the global loss, or by KoLeo where asit.koleo_on is pooled: "
            "asit.weight_global must be above 0, or model.pooling cls or mean",
        )
    if model.distilled or model.stride != PATCH:
        yield (
            ("model.distilled", "model.stride"),
            "ASiT masks and reconstructs patches that do not overlap, and has one class token: model.stride must be 16 "
            "and model.distilled false",
        )
    if views.local_count and not asit.weight_global:
        yield (
            ("views.local_count", "asit.weight_global"),
            "local crops are only used by the global loss: set views.local_count to 0 or asit.weight_global above 0",
        )
    if least is not None and least > asit.mask_target:
        yield (
            ("asit.mask_target_least", "asit.mask_target"),
            f"asit.mask_target_least ({least}) must not be above asit.mask_target ({asit.mask_target})",
        )
    if asit.mask_copied and not asit.mask_target:
        yield (
            ("asit.mask_copied", "asit.mask_target"),
            "asit.mask_copied replaces masks: asit.mask_target must be above 0",
        )
    if asit.mask_shape == "inverse" and (asit.mask_copied or 0 < (least or asit.mask_target) < 0.01 or least == 0):
        yield (
            ("asit.mask_shape", "asit.mask_copied", "asit.mask_target_least", "asit.mask_target"),
            "asit.mask_shape inverse lays blocks that stay visible: asit.mask_copied must be 0, and asit.mask_target "
            "(or asit.mask_target_least) at least 0.01",
        )
    yield from _sparse(recipe)
    if asit.targets == "features" and (not asit.weight_local or asit.prototypes_data or asit.heads != "shared"):
        yield (
            ("asit.targets", "asit.weight_local", "asit.prototypes_data", "asit.heads"),
            "asit.targets features is of a local loss without prototypes: asit.weight_local must be above 0, "
            "asit.prototypes_data null and asit.heads shared",
        )
    if asit.target_blocks is not None and asit.targets != "features":
        yield (
            ("asit.target_blocks", "asit.targets"),
            "asit.target_blocks are of asit.targets features: set that too, or asit.target_blocks to null",
        )
    if asit.heads == "shared" and asit.prototypes_data not in (None, asit.prototypes):
        yield (
            ("asit.prototypes_data", "asit.heads"),
            f"a shared head has one number of outputs: asit.prototypes_data ({asit.prototypes_data}) must equal "
            f"asit.prototypes ({asit.prototypes}), or asit.heads be partly or separate",
        )
    if asit.teacher_temperature_start is not None and not asit.teacher_temperature_epochs:
        yield (
            ("asit.teacher_temperature_start", "asit.teacher_temperature_epochs"),
            "asit.teacher_temperature_start needs asit.teacher_temperature_epochs above 0",
        )
    if asit.teacher_temperature_start is None and asit.teacher_temperature_epochs > 0:
        yield (
            ("asit.teacher_temperature_epochs", "asit.teacher_temperature_start"),
            "asit.teacher_temperature_epochs is the time that it takes from asit.teacher_temperature_start: set that "
            "too, or leave the epochs at 0",
        )
    if asit.koleo_on != "rows" and not asit.weight_koleo:
        yield (
            ("asit.koleo_on", "asit.weight_koleo"),
            "asit.koleo_on only affects KoLeo: asit.weight_koleo must be above 0",
        )
    if asit.freeze_output_epochs and optim.name == "adam" and (optim.weight_decay or optim.weight_decay_end):
        yield (
            ("asit.freeze_output_epochs", "optim.name"),
            "asit.freeze_output_epochs needs optim.name adamw: Adam's weight decay is part of the gradient, and would "
            "move the frozen output layer",
        )


def _sparse(recipe: Recipe) -> Iterator[Problem]:
    """What does not go with an encoder that gets visible patches alone, or with several masks of a view."""
    asit, views = recipe.asit, recipe.views
    visible = asit.encode == "visible"
    if views.local_count and (visible or asit.clones > 1):
        yield (
            ("asit.encode", "asit.clones", "views.local_count"),
            "local crops are beside views that are encoded once and whole: set views.local_count to 0, or asit.encode "
            "to all and asit.clones to 1",
        )
    if asit.visible is not None and not visible:
        yield (
            ("asit.visible", "asit.encode"),
            "asit.visible is the share that is encoded with asit.encode visible: set that too",
        )
    if asit.predictor != "none":
        yield from _predictor(recipe)
    if not visible:
        return
    if asit.mask_target_least is not None or asit.mask_copied:
        yield (
            ("asit.encode", "asit.mask_target_least", "asit.mask_copied"),
            "asit.encode visible encodes as many patches of every view: asit.mask_target_least must be null and "
            "asit.mask_copied 0",
        )
    if asit.visible is None and asit.mask_target and not asit.mask_aligned:
        yield (
            ("asit.visible", "asit.encode", "asit.mask_aligned"),
            "masks that ignore the patch grid hide few patches wholly, so asit.encode visible needs asit.visible, the "
            "share that is encoded (0.59 is what 0.70 of the pixels leaves), or asit.mask_aligned",
        )
    if asit.visible is not None and not asit.mask_target:
        yield (
            ("asit.visible", "asit.mask_target"),
            "asit.visible needs masks: set asit.mask_target above 0, or asit.visible to null",
        )
    on_masked = asit.weight_reconstruction or (asit.weight_local and asit.local_on == "masked")
    if asit.mask_target and asit.mask_aligned and on_masked and asit.predictor == "none":
        yield (
            ("asit.encode", "asit.mask_aligned", "asit.weight_reconstruction", "asit.local_on"),
            "with asit.mask_aligned no visible patch is masked, so nothing is left to reconstruct: take a predictor "
            "(asit.predictor), or masks that ignore the patch grid, or set asit.weight_reconstruction to 0 and "
            "asit.local_on to all",
        )


def _predictor(recipe: Recipe) -> Iterator[Problem]:
    """What a predictor of hidden patches needs."""
    asit, model = recipe.asit, recipe.model
    dim, what = asit.predictor_dim or model.dim // 2, f"asit.predictor {asit.predictor}"
    if not asit.unseen:
        yield (
            ("asit.predictor", "asit.encode", "asit.mask_target", "asit.visible"),
            f"{what} is for patches that are not encoded: set asit.encode to visible, asit.mask_target above 0 and "
            "asit.visible below 1",
        )
    if not (asit.weight_reconstruction or asit.weight_local):
        yield (
            ("asit.predictor", "asit.weight_reconstruction", "asit.weight_local"),
            f"{what} is trained by reconstruction and the local loss: one of asit.weight_reconstruction and "
            "asit.weight_local must be above 0",
        )
    if dim % 4 or dim % model.heads:
        yield (
            ("asit.predictor_dim", "model.heads", "model.dim"),
            f"asit.predictor_dim ({dim}) must be a multiple of 4 and of model.heads ({model.heads})",
        )


def finetuning(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions between folds, views and averages."""
    folds = recipe.folds
    if not folds.test or not all(folds.test):
        yield (("folds.test",), "folds.test needs at least one round of at least one fold")
    for test in folds.test:
        for key, others in (("train", folds.train), ("validation", folds.validation)):
            both = [fold for fold in others or [] if fold in test]
            if both:
                yield (
                    (f"folds.{key}", "folds.test"),
                    f"fold {both[0]} is both in folds.{key} and in a round of folds.test",
                )
    if recipe.plan.grow:
        yield (
            ("plan.grow",),
            "plan.grow is for pretraining: the folds and classes of a fine-tuning are those that it began with",
        )
    if folds.column in recipe.subset:
        yield (
            ("subset",),
            f"subset.{folds.column} conflicts with folds: set folds.train, folds.validation and folds.test instead",
        )
    if recipe.features:
        yield from _on_features(recipe)
    if recipe.encoder:
        yield from _with_encoder(recipe)
    yield from _by_frames(recipe)
    first = recipe.finetune.average_from
    if first is not None and first > recipe.epochs:
        yield (
            ("finetune.average_from", "epochs"),
            f"finetune.average_from ({first}) is after the last of {recipe.epochs} epochs: nothing would be averaged",
        )
    if recipe.finetune.take_head and not recipe.init:
        yield (("finetune.take_head", "init"), "finetune.take_head needs an init to take the classifier from")
    if recipe.finetune.freeze:
        yield from _frozen(recipe)
    if recipe.views.count != 1:
        yield (("views.count",), f"fine-tuning sees one view a clip, not {recipe.views.count}")
    if recipe.views.local_count:
        yield (("views.local_count",), "fine-tuning sees one view a clip: views.local_count must be 0")


def _frozen(recipe: Recipe) -> Iterator[Problem]:
    """What stands against a backbone that stays as it is."""
    if not recipe.init:
        yield (
            ("finetune.freeze", "init"),
            "finetune.freeze keeps the backbone as it is, and without an init that is as it was drawn: name one",
        )
    for key, instead in (
        ("features", ", which are frozen already"),
        ("encoder", "; to keep the encoder, extract its features"),
    ):
        if getattr(recipe, key):
            yield (
                ("finetune.freeze", key),
                f"finetune.freeze is of a model of sound: it does not go with {key}{instead}",
            )


def _by_frames(recipe: Recipe) -> Iterator[Problem]:
    """What a head of frames cannot do, and what only it can."""
    finetune, views, augment = recipe.finetune, recipe.views, recipe.augment
    weights = {"weight_frames": finetune.weight_frames, "weight_clips": finetune.weight_clips}
    if recipe.model.pooling != "frames":
        for name, weight in weights.items():
            if weight != 1:
                yield (
                    (f"finetune.{name}", "model.pooling"),
                    f"finetune.{name} is of a loss on frames or clips: it needs model.pooling frames",
                )
        if finetune.median_frames != 1:
            yield (
                ("finetune.median_frames", "model.pooling"),
                "finetune.median_frames is of a classifier of frames: it needs model.pooling frames",
            )
        return
    if finetune.median_frames % 2 == 0:
        yield (
            ("finetune.median_frames",),
            f"the middle one of finetune.median_frames = {finetune.median_frames} frames: there must be an odd number",
        )
    if not any(weights.values()):
        yield (
            ("finetune.weight_frames", "finetune.weight_clips"),
            "one of finetune.weight_frames and finetune.weight_clips must be above 0",
        )
    for key in ("features", "encoder"):
        if getattr(recipe, key):
            yield (("model.pooling", key), f"model.pooling frames is of a model of sound: it does not go with {key}")
    if finetune.loss != "bce":
        yield (
            ("finetune.loss", "model.pooling"),
            "model.pooling frames tells of each class whether it is heard: set finetune.loss to bce",
        )
    if views.pad_to is not None or (views.frames is not None and views.pad):
        yield (
            ("views.pad", "views.pad_to", "model.pooling"),
            "model.pooling frames would classify padding too: leave clips at their own length with views.pad_to null "
            "and views.pad false",
        )
    for key, why in (
        ("mixup", "the events of a clip that is mixed with one of unknown times would be known in part only"),
        ("drop_tokens", "a column without all its patches is no frame"),
        ("noise", "it also shifts the spectrogram in time, away from its events"),
    ):
        if getattr(augment, key):
            yield (
                (f"augment.{key}", "model.pooling"),
                f"augment.{key} does not go with model.pooling frames, since {why}: leave it out",
            )


def _on_features(recipe: Recipe) -> Iterator[Problem]:
    """What cannot be combined with cached features."""
    augment = recipe.augment
    if recipe.step.clips is None:
        yield (("step.clips", "features"), "cached features are batched by number: set step.clips, not step.tokens")
    for key in ("frequency_mask", "noise", "drop_tokens"):
        if getattr(augment, key):
            yield ((f"augment.{key}", "features"), f"augment.{key} works on sound, not on cached features: remove it")
    if recipe.finetune.take_head:
        yield (
            ("finetune.take_head", "features"),
            "finetune.take_head is not for features: the head is the whole model, and init names it",
        )
    if recipe.views.roll:
        yield (("views.roll", "features"), "views.roll works on sound, not on cached features: set it to 0")


def _with_encoder(recipe: Recipe) -> Iterator[Problem]:
    """What cannot be combined with fine-tuning an encoder with its head."""
    augment, views = recipe.augment, recipe.views
    if recipe.features:
        yield (("features", "encoder"), "features come from a frozen encoder: with encoder set features to ''")
    covers = math.ceil(((recipe.head.seconds * RATE - WINDOW) / HOP + 1) / PATCH) * PATCH
    if views.frames != covers or not views.pad or list(views.resolutions) != [1.0] or list(views.poolings) != [1]:
        yield (
            ("views.frames", "head.seconds"),
            f"a window of head.seconds = {recipe.head.seconds:g} is covered by views.frames = {covers} at 10 ms, "
            f"padded; it is {views.frames}",
        )
    for key in ("frequency_mask", "noise", "drop_tokens"):
        if getattr(augment, key):
            yield (
                (f"augment.{key}", "encoder"),
                f"augment.{key} does not work with an encoder and its head: remove it",
            )


def extracting(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions of the section `extract`."""
    extract = recipe.extract
    if CLIPS_A_SHARD % extract.batch:
        near = min(
            (size for size in range(1, CLIPS_A_SHARD + 1) if not CLIPS_A_SHARD % size),
            key=lambda n: abs(n - extract.batch),
        )
        yield ("extract.batch",), f"extract.batch must divide {CLIPS_A_SHARD}, such as {near}, not {extract.batch}"
    if sorted(set(extract.blocks)) != list(extract.blocks):
        yield (
            ("extract.blocks",),
            f"extract.blocks must be numbers of blocks from 0, in ascending order, not {extract.blocks}",
        )
    if recipe.mixture:
        yield ("mixture",), "a cache holds one shard set: make one for each set of the mixture"
