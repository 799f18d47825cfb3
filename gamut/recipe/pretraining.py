"""What a recipe says of the ASiT objective, checked against itself."""

from __future__ import annotations

from gamut.recipe.schema import Recipe
from gamut.recipe.views import Problem


def pretraining_that_cannot_be(recipe: Recipe) -> list[Problem]:
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
    wrong: list[tuple[bool, tuple[str, ...], str]] = [
        (
            not (asit.weight_reconstruction or asit.weight_local or asit.weight_global),
            ("asit.weight_reconstruction",),
            "one of asit.weight_reconstruction, asit.weight_local and asit.weight_global must be above 0",
        ),
        (
            bool(others) and (step.clips or step.max_clips) == 1,
            (*others, bound),
            f"a clip alone in its pack has no other for {' and '.join(others)}: {bound} must be above 1",
        ),
        (
            bool(asit.weight_global) and views.count != 2,
            ("asit.weight_global", "views.count"),
            f"the global loss compares two views: views.count must be 2 (it is {views.count}) or asit.weight_global 0",
        ),
        (
            model.pooling == "attention"
            and not asit.weight_global
            and not (asit.weight_koleo and asit.koleo_on == "pooled"),
            ("asit.weight_global", "model.pooling"),
            "attention pooling is trained by the global loss, and by KoLeo where asit.koleo_on is pooled: "
            "asit.weight_global must be above 0, or model.pooling cls or mean",
        ),
        (
            model.distilled or model.stride != 16,
            ("model.distilled", "model.stride"),
            "ASiT hides and rebuilds patches that lie side by side, and has one class token: model.stride must be 16, "
            "model.distilled false",
        ),
        (
            bool(views.local_count) and not asit.weight_global,
            ("views.local_count", "asit.weight_global"),
            "local crops serve the global loss alone: set views.local_count to 0 or asit.weight_global above 0",
        ),
        (
            least is not None and least > asit.mask_target,
            ("asit.mask_target_least", "asit.mask_target"),
            f"asit.mask_target_least ({least}) must not be above asit.mask_target ({asit.mask_target})",
        ),
        (
            bool(asit.mask_copied) and not asit.mask_target,
            ("asit.mask_copied", "asit.mask_target"),
            "asit.mask_copied takes the place of masks: asit.mask_target must be above 0",
        ),
        (
            asit.heads == "shared" and asit.prototypes_data not in (None, asit.prototypes),
            ("asit.prototypes_data", "asit.heads"),
            f"a shared head has one number of outputs: asit.prototypes_data ({asit.prototypes_data}) other than "
            f"asit.prototypes ({asit.prototypes}) needs asit.heads partly or separate",
        ),
        (
            asit.teacher_temperature_start is not None and not asit.teacher_temperature_epochs,
            ("asit.teacher_temperature_start", "asit.teacher_temperature_epochs"),
            "asit.teacher_temperature_start needs asit.teacher_temperature_epochs above 0",
        ),
        (
            asit.teacher_temperature_start is None and asit.teacher_temperature_epochs > 0,
            ("asit.teacher_temperature_epochs", "asit.teacher_temperature_start"),
            "asit.teacher_temperature_epochs is how long the way from asit.teacher_temperature_start is: set that too, "
            "or leave the epochs at 0",
        ),
        (
            asit.koleo_on != "rows" and not asit.weight_koleo,
            ("asit.koleo_on", "asit.weight_koleo"),
            "asit.koleo_on has no use without KoLeo: asit.weight_koleo must be above 0",
        ),
        (
            bool(asit.freeze_output_epochs)
            and optim.name == "adam"
            and bool(optim.weight_decay or optim.weight_decay_end),
            ("asit.freeze_output_epochs", "optim.name"),
            "asit.freeze_output_epochs needs optim.name adamw: Adam's weight decay, as part of the gradient, moves the "
            "output layer that should rest",
        ),
        (
            optim.layer_decay != 1 or optim.head_scale != 1,
            ("optim.layer_decay", "optim.head_scale"),
            "optim.layer_decay and optim.head_scale are for fine-tuning: in pretraining all learns at one rate, leave "
            "them at 1",
        ),
    ]
    return [(keys, problem) for is_wrong, keys, problem in wrong if is_wrong]
