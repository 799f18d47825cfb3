"""What a recipe's values must satisfy beyond their types: choices, ranges, and sections that agree with each other."""

from __future__ import annotations

import math
import re
from typing import Any

from gamut.errors import RecipeError
from gamut.recipe.extraction import extraction_that_cannot_be
from gamut.recipe.finetuning import finetuning_that_cannot_be
from gamut.recipe.pretraining import pretraining_that_cannot_be
from gamut.recipe.remote import remote_that_cannot_be
from gamut.recipe.schema import Recipe
from gamut.recipe.views import Problem, views_that_cannot_be
from gamut.settings import flatten

COMMAND_LINE = "the command line"

CHOICES: dict[str, tuple[str, ...]] = {
    "stage": ("pretrain", "finetune", "features"),
    "precision": ("fp32", "bf16", "fp16"),
    "engine": ("deepspeed", "oss"),
    "optim.lr_rule": ("linear", "sqrt"),
    "guard.policy": ("flag", "stop", "back"),
    "compute.activations": ("keep", "recompute", "offload"),
    "front.mode": ("fast", "exact"),
    "model.positions": ("learned", "factorised"),
    "model.pooling": ("cls", "attention", "mean"),
    "head.kind": ("last_mlp", "wa_mlp", "wa_tr", "tl_tr"),
    "model.table_like": ("asit", "ast"),
    "views.too_long": ("cut", "error"),
    "views.pad_with": ("silence", "zero"),
    "plan.packer": ("exact", "next_fit"),
    "plan.locality": ("none", "node"),
    "asit.local_on": ("masked", "all"),
    "asit.koleo_on": ("rows", "pooled"),
    "asit.mask_shape": ("blocks", "time", "frequency"),
    "asit.mask_fill": ("zeros", "noise", "clip"),
    "asit.heads": ("shared", "partly", "separate"),
    "asit.gain": ("fixed", "trained"),
    "augment.mask_fill": ("zero", "mean"),
    "augment.time_scale": ("none", "length", "resolution"),
    "finetune.loss": ("ce", "bce"),
    "finetune.metric": ("auto", "accuracy", "mAP"),
    "optim.name": ("adamw", "adam"),
    "optim.schedule": ("cosine", "gamma"),
    "extract.dtype": ("fp16", "fp32", "int8"),
}

TRAINED = ("fp32", "bf16")  # fp16 is for frozen encoders: training would have to scale its loss

_ANY = math.inf
# key -> (least, most), both allowed
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, _ANY),
    "seed": (0, 2**63 - 1),
    "model.dim": (1, _ANY),
    "model.depth": (1, _ANY),
    "model.heads": (1, _ANY),
    "model.table_frames": (16, _ANY),
    "model.pooling_heads": (1, _ANY),
    "model.stride": (1, 16),
    "model.drop_path": (0, 0.999),
    "model.init_std": (1e-6, 1),
    "head.dim": (1, _ANY),
    "head.time_heads": (1, _ANY),
    "head.layer_heads": (1, _ANY),
    "head.seconds": (0.1, 30),
    "head.pool": (1, _ANY),
    "views.count": (1, _ANY),
    "views.frames": (16, _ANY),
    "views.max_frames": (16, _ANY),
    "views.pad_to": (16, _ANY),
    "views.max_seconds": (0.025, _ANY),
    "views.local_count": (0, _ANY),
    "views.local_frames": (16, _ANY),
    "views.roll": (0, 1),
    "step.packs": (1, _ANY),
    "step.clips": (1, _ANY),
    "step.tokens": (1, _ANY),
    "step.max_clips": (1, _ANY),
    "plan.lookahead": (1, _ANY),
    "plan.window": (1, _ANY),
    "plan.draws": (1, _ANY),
    "loader.workers": (0, _ANY),
    "loader.packs_per_forward": (1, _ANY),
    "loader.prefetch": (1, _ANY),
    "loader.max_holes": (0, 1),
    "remote.piece_mb": (0.001, 10_000),
    "remote.tries": (1, 1000),
    "remote.pause_seconds": (0, _ANY),
    "optim.lr": (0, _ANY),
    "optim.lr_base_batch": (0, _ANY),
    "optim.lr_end": (0, _ANY),
    "optim.gamma": (0, 1),
    "optim.gamma_from": (0, _ANY),
    "optim.gamma_every": (1, _ANY),
    "optim.warmup_epochs": (0, _ANY),
    "optim.warmup_steps": (0, _ANY),
    "optim.warmup_start": (0, 1),
    "optim.eps": (0, _ANY),
    "optim.weight_decay": (0, _ANY),
    "optim.weight_decay_end": (0, _ANY),
    "optim.layer_decay": (0, 1),
    "optim.head_scale": (0, _ANY),
    "optim.clip": (0, _ANY),
    "asit.mask_target": (0, 0.99),  # more takes many thousands of blocks
    "asit.mask_target_least": (0, 0.99),
    "asit.mask_copied": (0, 1),
    "asit.mask_copied_share": (0, 0.99),
    "asit.mask_time_share": (0.01, 1),
    "asit.mask_frequency_share": (0.01, 1),
    "asit.hidden": (1, _ANY),
    "asit.bottleneck": (1, _ANY),
    "asit.prototypes": (2, _ANY),
    "asit.prototypes_data": (2, _ANY),
    "asit.freeze_output_epochs": (0, _ANY),
    "asit.reconstruction_hidden": (1, _ANY),
    "asit.reconstruction_bottleneck": (1, _ANY),
    "asit.teacher_temperature_epochs": (0, _ANY),
    "asit.weight_reconstruction": (0, _ANY),
    "asit.weight_local": (0, _ANY),
    "asit.weight_global": (0, _ANY),
    "asit.weight_koleo": (0, _ANY),
    "asit.centre_momentum": (0, 1),
    "asit.teacher_momentum": (0, 1),
    "augment.time_mask": (0, _ANY),
    "augment.frequency_mask": (0, 128),
    "augment.mixup": (0, 1),
    "augment.mixup_beta": (1, _ANY),
    "augment.drop_tokens": (0, 0.9),
    "finetune.label_smoothing": (0, 0.999),
    "finetune.average_from": (1, _ANY),
    "finetune.evaluate_epochs": (0, _ANY),
    "finetune.seeds": (1, _ANY),
    "extract.pool": (1, _ANY),
    "extract.batch": (1, _ANY),
    "guard.leap": (0, _ANY),
    "guard.leave_out": (1, _ANY),
    "guard.collapse_steps": (0, _ANY),
    "guard.drift_steps": (0, _ANY),
    "checkpoint.every_epochs": (0, _ANY),
    "checkpoint.every_minutes": (0, _ANY),
    "checkpoint.keep": (1, _ANY),
    "checkpoint.keep_every": (0, _ANY),
    "track.picture_epochs": (0, _ANY),
    "track.log_steps": (1, _ANY),
    "probe.every_epochs": (0, _ANY),
    "probe.clips": (2, _ANY),
    "probe.max_seconds": (0.025, _ANY),
    "probe.neighbours": (1, _ANY),
    "run.threads": (0, _ANY),
}
POSITIVE = (
    "front.std",
    "model.mlp_ratio",
    "model.attention_scale",
    "model.head_eps",
    "asit.teacher_temperature",
    "asit.teacher_temperature_start",
    "asit.student_temperature",
    "extract.seconds",
    "run.timeout_seconds",
    "remote.cache_gb",
    "remote.timeout_seconds",
)


def at(place: str) -> str:
    """`on the command line`, or `in FILE`."""
    return f"on {place}" if place == COMMAND_LINE else f"in {place}"


def check(recipe: Recipe, origin: dict[str, str] | None = None) -> None:
    """Raise RecipeError for the first value that cannot be. `origin` says where each key was set."""
    origin = origin or {}
    values = flatten(recipe)

    def where(*keys: str) -> str:
        places = [origin[key] for key in keys if key in origin]
        places.sort(key=lambda place: place == COMMAND_LINE)  # what was typed last is the likelier slip
        if not places:
            return ""
        return f" {at(places[-1])}"

    for key, allowed in CHOICES.items():
        if key == "precision" and recipe.stage != "features":
            allowed = TRAINED
        if values[key] not in allowed:
            raise RecipeError(f"{key}{where(key)} must be {_either(allowed)}, not {values[key]!r}.")
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{key}{where(key)} must be a finite number, not {value}.")
    for key, (least, most) in RANGES.items():
        value = values[key]
        if value is not None and not least <= value <= most:
            bound = f"at least {least:g}" if most == _ANY else f"between {least:g} and {most:g}"
            raise RecipeError(f"{key}{where(key)} must be {bound}, not {value}.")
    for key in POSITIVE:
        if values[key] is not None and values[key] <= 0:
            raise RecipeError(f"{key}{where(key)} must be above 0, not {values[key]}.")
    for keys, problem in _contradictions(recipe):
        place = where(*keys)
        raise RecipeError(f"{problem} (set{place})." if place else f"{problem}.")


def _either(allowed: tuple[str, ...]) -> str:
    return allowed[0] if len(allowed) == 1 else f"{', '.join(allowed[:-1])} or {allowed[-1]}"


def _contradictions(recipe: Recipe) -> list[Problem]:
    """Everything that does not fit together."""
    found: list[Problem] = []

    def refuse(wrong: bool, keys: tuple[str, ...], problem: str) -> None:
        if wrong:
            found.append((keys, problem))

    model, views, step, front = recipe.model, recipe.views, recipe.step, recipe.front
    given = [key for key in ("clips", "tokens") if getattr(step, key) is not None]
    trains = recipe.stage != "features"
    refuse(
        trains and len(given) != 1,
        ("step.clips", "step.tokens"),
        "step needs exactly one of step.clips and step.tokens: "
        + ("both are given, so set one of them to null" if given else "neither is given"),
    )
    for key, frames in (
        ("views.frames", views.frames),
        ("views.max_frames", views.max_frames),
        ("views.pad_to", views.pad_to),
        ("views.local_frames", views.local_frames),
        ("model.table_frames", model.table_frames),
    ):
        refuse(
            frames is not None and frames % 16 != 0,
            (key,),
            f"{key} must be a multiple of 16 (a patch is 16 frames wide), not {frames}",
        )
    refuse(
        model.dim % model.heads != 0,
        ("model.dim", "model.heads"),
        f"model.dim ({model.dim}) must be a multiple of model.heads ({model.heads})",
    )
    refuse(
        model.pooling == "attention" and model.dim % model.pooling_heads != 0,
        ("model.dim", "model.pooling_heads"),
        f"model.dim ({model.dim}) must be a multiple of model.pooling_heads ({model.pooling_heads})",
    )
    refuse(
        model.distilled and model.pooling != "cls",
        ("model.distilled", "model.pooling"),
        f"model.distilled is a second token beside CLS: it needs model.pooling cls, not {model.pooling}",
    )
    refuse(
        model.table_like == "ast" and model.positions != "learned",
        ("model.table_like", "model.positions"),
        "model.table_like: ast is for model.positions: learned; factorised tables have one way to fit a clip",
    )
    refuse(
        (front.mean is None) != (front.std is None),
        ("front.mean", "front.std"),
        "front.mean and front.std must both be given, or both be left to the shards' own statistics",
    )
    found += views_that_cannot_be(recipe)
    refuse(
        recipe.optim.clip_each and (recipe.engine != "oss" or not recipe.optim.clip),
        ("optim.clip_each", "engine", "optim.clip"),
        "optim.clip_each needs whole gradients and a norm: engine: oss and optim.clip above 0",
    )
    refuse(
        not all(0 <= beta < 1 for beta in recipe.optim.betas),
        ("optim.betas",),
        f"optim.betas must lie in [0, 1), not {list(recipe.optim.betas)}",
    )
    for name, part in recipe.mixture.items():
        refuse(not 0 < part < _ANY, ("mixture",), f"mixture.{name} must be above 0, not {part}")
    for section, subset in (
        ("subset", recipe.subset),
        ("probe.train", recipe.probe.train),
        ("probe.test", recipe.probe.test),
    ):
        for name, value in subset.items():
            refuse(
                not _subset_fits(name, value),
                (section,),
                f"{section}.{name} must be {_SUBSET.get(name, _VALUES)}, not {value!r}",
            )
        refuse(
            {"per_class", "share"} <= subset.keys(),
            (section,),
            f"{section}.per_class and {section}.share both choose how many clips: leave one out",
        )
    refuse(
        bool(recipe.probe.train) != bool(recipe.probe.test),
        ("probe.train", "probe.test"),
        "probe.train and probe.test belong together: give both, or neither for cross-validation over probe.folds",
    )
    for name, instead in (
        ("zero_optimization", "such as deepspeed.zero_optimization.stage=2"),
        ("bf16", "which precision=bf16 fills in"),
        ("data_types", "such as deepspeed.data_types.grad_accum_dtype=fp32"),
    ):
        section = recipe.deepspeed.get(name, {})
        refuse(
            not isinstance(section, dict), ("deepspeed",), f"deepspeed.{name} is a section, {instead}, not {section!r}"
        )
    zero = recipe.deepspeed.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    refuse(
        type(stage) is not int or stage not in range(4),
        ("deepspeed",),
        "deepspeed.zero_optimization.stage must be 0, 1, 2 (cuts gradients over the ranks too) or 3 (and the weights), "
        f"not {stage!r}",
    )
    refuse(
        trains and recipe.engine == "deepspeed" and recipe.precision == "bf16" and stage == 0,
        ("deepspeed", "precision"),
        "ZeRO stage 0 is for precision: fp32 only; use deepspeed.zero_optimization.stage=1 with bf16",
    )
    refuse(
        not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", part) for part in recipe.run.name.split("/")),
        ("run.name",),
        f"run.name must be a folder name of letters, digits and ._+- (or several, with / between), "
        f"not {recipe.run.name!r}",
    )
    refuse(
        recipe.track.mlflow not in ("auto", "off") and "://" not in recipe.track.mlflow,
        ("track.mlflow",),
        f"track.mlflow must be auto, off or a URI such as http://127.0.0.1:5000, not {recipe.track.mlflow!r}",
    )
    found += remote_that_cannot_be(recipe)
    if recipe.stage == "pretrain":
        found += pretraining_that_cannot_be(recipe)
    elif recipe.stage == "features":
        found += extraction_that_cannot_be(recipe)
    else:
        found += finetuning_that_cannot_be(recipe)
    return found


_VALUES = "a list of whole numbers (of 64 bits) or names"
_SUBSET = {
    "keys": "the name of a file with a key a line",
    "per_class": "a whole number above 0",
    "share": "a number above 0, at most 1",
    "seed": "a whole number of 0 or more",
}


def _subset_fits(name: str, value: Any) -> bool:
    """Whether an entry of `subset` is of its kind."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "keys":
        return isinstance(value, str) and bool(value)
    if name == "share":
        return number and 0 < value <= 1
    if name in ("per_class", "seed"):
        return number and isinstance(value, int) and (name == "per_class") <= value < 1 << 63
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(one, str) or _is_int64(one) for one in values)


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 << 63 <= value < 1 << 63
