"""What a recipe's values must satisfy beyond their types: each is within the bounds beside it in the schema, and
together they are free of contradictions."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gamut.errors import RecipeError
from gamut.numbers import HOP, PATCH, bands, columns
from gamut.plan.policy import clashes
from gamut.recipe.check_stages import Problem
from gamut.recipe.find import STAGES
from gamut.recipe.policy import KEYS, hop, training_fields
from gamut.recipe.schema import Model, Recipe
from gamut.remote import is_remote
from gamut.remote.fetch import LONGEST_PAUSE
from gamut.settings import problems

COMMAND_LINE = "the command line"


def at(place: str) -> str:
    """`on the command line`, or `in FILE`."""
    return f"on {place}" if place == COMMAND_LINE else f"in {place}"


def check(recipe: Recipe, origin: dict[str, str] | None = None) -> None:
    """Raise RecipeError for the first invalid value. `origin` says where each key was set."""
    origin = origin or {}

    def where(*keys: str) -> str:
        places = [origin[key] for key in keys if key in origin]
        places.sort(key=lambda place: place == COMMAND_LINE)  # what was typed last is the more likely mistake
        return f" {at(places[-1])}" if places else ""

    for key, problem in problems(recipe):
        raise RecipeError(f"{key}{where(key)} {problem}.")
    for keys, problem in _contradictions(recipe):
        place = where(*keys)
        raise RecipeError(f"{problem} (set{place})." if place else f"{problem}.")


def check_model(model: Model) -> None:
    """Raise RecipeError for an invalid model section, of a recipe or made by hand."""
    for key, problem in problems(model, "model."):
        raise RecipeError(f"{key} {problem}.")
    for _, problem in _model(model):
        raise RecipeError(f"{problem}.")


def _contradictions(recipe: Recipe) -> Iterator[Problem]:
    """All contradictions between keys."""
    yield from _model(recipe.model)
    yield from _views(recipe)
    yield from _optim(recipe)
    yield from _track(recipe)
    yield from _clips(recipe)
    yield from _deepspeed(recipe)
    yield from _places(recipe)
    yield from pkgutil.resolve_name(STAGES[recipe.stage].check)(recipe)
    if recipe.stage != "features":
        yield from _plan(recipe)


def _model(model: Model) -> Iterator[Problem]:
    heads = {"heads": True, "pooling_heads": model.pooling == "attention"}
    for name in [name for name, used in heads.items() if used]:
        if model.dim % getattr(model, name):
            yield (
                ("model.dim", f"model.{name}"),
                f"model.dim ({model.dim}) must be a multiple of model.{name} ({getattr(model, name)})",
            )
    if model.distilled and model.pooling != "cls":
        yield (
            ("model.distilled", "model.pooling"),
            f"model.distilled adds a second token beside CLS: it needs model.pooling cls, not {model.pooling}",
        )
    if model.table_like == "ast" and model.positions != "learned":
        yield (
            ("model.table_like", "model.positions"),
            "model.table_like ast needs model.positions learned; factorised tables have only one way to fit a clip",
        )


def _views(recipe: Recipe) -> Iterator[Problem]:
    """Lengths, resolutions and crops that contradict each other."""
    views, front = recipe.views, recipe.front
    if (front.mean is None) != (front.std is None):
        yield (
            ("front.mean", "front.std"),
            "front.mean and front.std must be set together, or both left to the statistics of the shards",
        )
    for c in views.resolutions:
        if abs(c * HOP - hop(c)) > 1e-6:
            yield (
                ("views.resolutions",),
                f"views.resolutions: a hop of 10 ms x {c:g} is not a whole number of samples at 16 kHz; the nearest "
                f"value that gives one is {max(hop(c), 1) / HOP:g}",
            )
    if views.pad_with == "zero" and (not views.pad or (views.frames is None and views.pad_to is None)):
        yield (
            ("views.pad_with",),
            "views.pad_with zero pads clips to a fixed length: it needs views.pad, and views.frames or views.pad_to",
        )
    if views.local_count and views.frames is not None and views.local_frames >= views.frames:
        yield (
            ("views.local_frames", "views.frames", "views.local_count"),
            f"local crops must be shorter than the views: views.local_frames ({views.local_frames}) must be below "
            f"views.frames ({views.frames}), such as {max(views.frames // 3 // PATCH, 1) * PATCH}, or "
            "views.local_count 0",
        )


def _plan(recipe: Recipe) -> Iterator[Problem]:
    """What cannot be planned: contradictions of the policy, and a pack that is too small for one clip."""
    views, step = recipe.views, recipe.step
    for fields, sentence in clashes(SimpleNamespace(**training_fields(recipe))):
        keys = {field: KEYS[field] for field in fields}
        yield tuple(keys.values()), sentence.format(**keys)
    longest = views.frames or views.pad_to or views.max_frames
    if step.tokens is None or not longest:
        return
    if views.pad_to:
        longest = int(longest / (min(views.resolutions) * min(views.poolings))) // PATCH * PATCH
    seen = _tokens(recipe, longest, recipe.asit.unseen) * recipe.asit.clones
    one = seen * views.count + _tokens(recipe, views.local_frames) * views.local_count
    local = f" and {views.local_count} x {views.local_frames}" if views.local_count else ""
    if one > step.tokens:
        yield (
            ("step.tokens", "views.frames", "views.max_frames", "views.local_count"),
            f"step.tokens ({step.tokens}) is too small for one clip of {one} tokens ({views.count} x {longest}{local} "
            "frames, class tokens included)",
        )


def _tokens(recipe: Recipe, frames: int, hidden: float = 0.0) -> int:
    model = recipe.model
    patches = columns(frames, model.stride) * bands(model.stride)
    for share in (recipe.augment.drop_tokens, hidden):
        patches -= int(patches * share)
    return patches + (model.pooling == "cls") + model.distilled


def _track(recipe: Recipe) -> Iterator[Problem]:
    steps = recipe.track.trace_steps
    if steps and (len(steps) != 2 or steps[0] > steps[1]):
        yield ("track.trace_steps",), f"track.trace_steps must be [first, last], or [] for no trace, not {steps}"


def _optim(recipe: Recipe) -> Iterator[Problem]:
    optim = recipe.optim
    if optim.clip_each and (recipe.engine != "oss" or not optim.clip):
        yield (
            ("optim.clip_each", "engine", "optim.clip"),
            "optim.clip_each needs unsplit gradients and a norm: engine: oss and optim.clip above 0",
        )
    if max(optim.betas) >= 1:
        yield ("optim.betas",), f"optim.betas must be in [0, 1), not {list(optim.betas)}"
    if recipe.precision == "fp16" and recipe.stage != "features":
        # Training would have to scale its loss.
        yield ("precision",), "precision must be fp32 or bf16, not 'fp16', which is only for frozen encoders"


def _clips(recipe: Recipe) -> Iterator[Problem]:
    """Which clips: subsets, and those of the probe."""
    subsets = {"subset": recipe.subset, "probe.train": recipe.probe.train, "probe.test": recipe.probe.test}
    for section, subset in subsets.items():
        for name, value in subset.items():
            if not _subset_fits(name, value):
                yield (section,), f"{section}.{name} must be {_SUBSET.get(name, _VALUES)}, not {value!r}"
        if {"per_class", "share"} <= subset.keys():
            yield (section,), f"{section}.per_class and {section}.share both set the number of clips: remove one"
    if bool(recipe.probe.train) != bool(recipe.probe.test):
        yield (
            ("probe.train", "probe.test"),
            "probe.train and probe.test must be set together, or neither for cross-validation over probe.folds",
        )


_VALUES = "a list of whole numbers (of 64 bits) or names"
_SUBSET = {
    "keys": "the name of a file with a key a line",
    "per_class": "a whole number above 0",
    "share": "a number above 0, at most 1",
    "seed": "a whole number of 0 or more",
}


def _subset_fits(name: str, value: Any) -> bool:
    """Whether an entry of `subset` has a valid value."""
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


def _deepspeed(recipe: Recipe) -> Iterator[Problem]:
    for name, instead in (
        ("zero_optimization", "such as deepspeed.zero_optimization.stage=2"),
        ("bf16", "which precision=bf16 fills in"),
        ("data_types", "such as deepspeed.data_types.grad_accum_dtype=fp32"),
    ):
        section = recipe.deepspeed.get(name, {})
        if not isinstance(section, dict):
            yield ("deepspeed",), f"deepspeed.{name} must be a section, {instead}, not {section!r}"
            return
    stage = recipe.deepspeed.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or stage not in range(4):
        yield (
            ("deepspeed",),
            "deepspeed.zero_optimization.stage must be 0, 1, 2 (also splits gradients over the ranks) or 3 (also the "
            f"weights), not {stage!r}",
        )
    if recipe.stage != "features" and recipe.engine == "deepspeed" and recipe.precision == "bf16" and stage == 0:
        yield (
            ("deepspeed", "precision"),
            "ZeRO stage 0 trains only in fp32, since DeepSpeed keeps no fp32 weights there: set precision=fp32, or "
            "deepspeed.zero_optimization.stage=1",
        )


def _places(recipe: Recipe) -> Iterator[Problem]:
    """The folder of the run, its tracking server, and how its data is fetched."""
    run, track, remote = recipe.run, recipe.track, recipe.remote
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", part) for part in run.name.split("/")):
        yield (
            ("run.name",),
            "run.name must be a folder name of letters, digits and ._+- (or several, with / between), not "
            f"{run.name!r}",
        )
    if track.mlflow not in ("auto", "off") and "://" not in track.mlflow:
        yield (
            ("track.mlflow",),
            f"track.mlflow must be auto, off or a URI such as http://127.0.0.1:5000, not {track.mlflow!r}",
        )
    copy = recipe.checkpoint.copy_to
    if copy and Path(copy).expanduser().resolve() == Path(run.folder).expanduser().resolve():
        yield ("checkpoint.copy_to", "run.folder"), "checkpoint.copy_to is the folder of the runs themselves"
    if remote.s3_endpoint and not re.fullmatch(r"https?://[^@?]+", remote.s3_endpoint):
        yield ("remote.s3_endpoint",), "remote.s3_endpoint must be a URL such as http://host:9000, without user"
    if recipe.data.startswith("pipe:") and not remote.allow_pipe:
        yield (
            ("data", "remote.allow_pipe"),
            "data names a command, which only runs with remote.allow_pipe=true",
        )
    pauses = sum(min(remote.pause_seconds * 2.0 ** min(n, 64), LONGEST_PAUSE) for n in range(remote.tries - 1))
    waiting = remote.tries * remote.timeout_seconds + pauses
    if is_remote(recipe.data) and waiting >= run.timeout_seconds:
        yield (
            ("remote.tries", "remote.timeout_seconds", "remote.pause_seconds", "run.timeout_seconds"),
            f"the run waits {waiting:g} s for a stalled server ({remote.tries} tries of {remote.timeout_seconds:g} s "
            f"and the pauses between them), but run.timeout_seconds={run.timeout_seconds:g} ends it earlier",
        )
