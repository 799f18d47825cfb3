"""From a recipe's name and the command line to a typed, checked `Recipe`.

A recipe is a YAML file, found by its name (gamut/recipe/find.py) or its path. `defaults: NAME` (or a list of names)
inherits other recipes of the same stage, merged in order, before the file's own keys. Overrides `a.b=c` come last.
OmegaConf holds the values and their types; this module turns every mistake into one sentence with the key, its place
and the nearest name.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gamut.errors import RecipeError, nearest
from gamut.recipe import schema
from gamut.recipe.check import COMMAND_LINE, at, check
from gamut.recipe.find import CONFIGS, find_recipe, name_of, show
from gamut.recipe.names import RENAMED, by_current_names, current, describe, hints, nearest_key, not_none
from gamut.recipe.text import parse_yaml
from gamut.registry import OBJECTIVES
from gamut.settings import about, flatten, problems

SHOWN_PREFIXES = ("GAMUT_", "SLURM_JOB_", "SLURM_ARRAY_")  # SLURM_JWT is a secret
SHOWN = ("HOME", "USER", "TMPDIR", "SCRATCH", "WORK", "PROJECT", "DATA")
ONLY = {name: known.stage for name, known in about(schema.Recipe).items() if known.stage}


def load_recipe(
    stage: str, name_or_path: str, overrides: list[str] | tuple[str, ...] = (), configs: Path = CONFIGS
) -> schema.Recipe:
    """The recipe called `name_or_path` (configs/STAGE/NAME.yaml, or a path to a YAML file) with `overrides` applied.

    `run.name` is filled with the recipe's name where it is empty; `${oc.env:NAME,default}` is resolved. Raises
    RecipeError for a missing recipe or file, an unknown key, a wrong type or value, sections that contradict each
    other, and an override that is not `key=value`.
    """
    path = find_recipe(stage, name_or_path, configs)
    config = copy.deepcopy(_defaults())
    origin: dict[str, str] = {}
    for file, values in _chain(stage, path, configs, ()):
        _apply(config, values, schema.Recipe, (), file, stage, origin)
    for override in overrides:
        _apply(config, _parse_override(override), schema.Recipe, (), COMMAND_LINE, stage, origin)
    config.stage = stage
    try:
        OmegaConf.resolve(config)
        recipe = typing.cast(schema.Recipe, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "")
        place = at(origin.get(key, show(path)))
        raise RecipeError(f"The value of {key or 'a key'} {place} cannot be resolved: {_first_line(error)}.") from None
    if not recipe.run.name:
        recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, name=name_of(stage, path, configs)))
    check(recipe, origin)
    if recipe.options:
        options_of(recipe, at(origin["options"]))
    return recipe


def written(stage: str, name: str, configs: Path = CONFIGS) -> dict[str, Any]:
    """What the files of a recipe say, its bases' first: dotted key -> value as YAML has it, neither checked nor
    resolved. Raises RecipeError for a file that is missing or is no recipe."""
    said: dict[str, Any] = {}
    for _, values in _chain(stage, find_recipe(stage, name, configs), configs, ()):
        said |= flatten(values, mappings=True)
    return said


def override(recipe: schema.Recipe, overrides: list[str] | tuple[str, ...]) -> schema.Recipe:
    """A recipe that was resolved before, of either stage, with `overrides` applied. Raises RecipeError."""
    config = _writable(OmegaConf.structured(recipe))
    origin: dict[str, str] = {}
    for text in overrides:
        values = _parse_override(text)
        stage = ONLY.get(next(iter(values)), recipe.stage)
        _apply(config, values, schema.Recipe, (), COMMAND_LINE, stage, origin)
    changed = typing.cast(schema.Recipe, OmegaConf.to_object(config))
    check(changed, origin)
    if "options" in origin:
        options_of(changed, at(origin["options"]))
    return changed


def options_of(recipe: schema.Recipe, where: str = "of the recipe") -> Any:
    """`recipe.options` as the dataclass that the recipe's objective names as its `Options`; None where it has none.

    `where` they were set, for the message. Raises RecipeError naming the key that is unknown, of another type or out of
    its bounds.
    """
    cls = getattr(OBJECTIVES[recipe.objective], "Options", None)
    known = hints(cls) if cls else {}
    for name in recipe.options:
        if name not in known:
            has = nearest(name, list(known), "options.") or (
                f"; it has {', '.join(known)}" if known else "; it has none"
            )
            raise RecipeError(f"The objective {recipe.objective} has no option {name} (options {where}){has}.")
    if cls is None:
        return None
    config = OmegaConf.structured(cls)
    OmegaConf.set_readonly(config, False)
    for name, value in recipe.options.items():
        _assign(config, name, value, known[name], f"options.{name}", where)
    made = OmegaConf.to_object(config)
    for key, problem in problems(made, "options."):
        raise RecipeError(f"{key} {where} {problem}.")
    return made


def environment(name: str, *default: str | None) -> str | None:
    """What `${oc.env:NAME,default}` in a recipe stands for: a variable of the environment that may be shown, since a
    recipe is, with the run and in MLflow. Raises ValueError for any other, and for one that is not set."""
    if not name.startswith(SHOWN_PREFIXES) and name not in SHOWN:
        raise ValueError(
            f"{name} is no variable that a recipe may show; it may show {', '.join(SHOWN)} and what begins with "
            f"{' or '.join(SHOWN_PREFIXES)}"
        )
    if name in os.environ:
        return os.environ[name]
    if default:
        return default[0]
    raise ValueError(f"the environment has no {name}")


OmegaConf.register_resolver("oc.env", environment, replace=True)


@functools.cache
def _defaults() -> DictConfig:
    """A recipe that says nothing, to be copied: making one anew from the schema takes six times as long."""
    return _writable(OmegaConf.structured(schema.Recipe))


def _writable(config: DictConfig) -> DictConfig:
    """Allow changes: OmegaConf makes a frozen dataclass read-only, but here it is still being filled in."""
    OmegaConf.set_readonly(config, False)
    for name, hint in hints(schema.Recipe).items():
        if dataclasses.is_dataclass(hint):
            OmegaConf.set_readonly(config[name], False)
    return config


def _chain(stage: str, path: Path, configs: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, its own values) of every recipe that `path` inherits, bases first, itself last."""
    path = path.resolve()
    if path in above:
        circle = " -> ".join(p.stem for p in (*above[above.index(path) :], path))
        raise RecipeError(f"The recipes inherit each other in a circle: {circle}; remove one of their `defaults`.")
    values = _read_yaml(path)
    bases = values.pop("defaults", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise RecipeError(f"`defaults` in {show(path)} must be the name of a recipe or a list of names.")
    for base in bases:
        yield from _chain(stage, find_recipe(stage, base, configs, asked_by=path), configs, (*above, path))
    try:
        values, before = by_current_names(values)
    except RecipeError as error:
        raise RecipeError(f"In {show(path)} {error}") from None
    for old in before:
        _warn_of_name(old, show(path))
    yield show(path), values


def _warn_of_name(old: str, place: str) -> None:
    """Warn from the first rank only."""
    if int(os.environ.get("RANK", "0") or 0) == 0:
        print(f"warning: {old} {at(place)} is now called {RENAMED[old]}; please rename it.", file=sys.stderr)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {show(path)} cannot be read: {error}.") from None
    values = parse_yaml(text, show(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(f"The recipe {show(path)} must consist of `key: value` lines.")
    return values


def _parse_override(override: str) -> dict[str, Any]:
    """`a.b=c` -> {a: {b: c}}. Text fields take the characters as they are; other values are parsed as YAML."""
    typed, equals, text = override.partition("=")
    key = current(typed.strip())
    parts = key.split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", part) for part in parts):
        raise RecipeError(f"{override!r} on {COMMAND_LINE} is not an override; write key=value, such as optim.lr=3e-4.")
    value: Any = text if _is_text(parts) else parse_yaml(text, f"The value of {key} on {COMMAND_LINE}")
    if key != typed.strip():
        _warn_of_name(next(old for old in RENAMED if f"{typed.strip()}.".startswith(f"{old}.")), COMMAND_LINE)
    for part in reversed(parts):
        value = {part: value}
    return value


def _is_text(parts: list[str]) -> bool:
    cls: Any = schema.Recipe
    for part in parts:
        if not dataclasses.is_dataclass(cls) or part not in hints(typing.cast(type, cls)):
            return False
        cls = hints(typing.cast(type, cls))[part]
    return cls is str


def _apply(
    config: DictConfig,
    values: Any,
    cls: type,
    path: tuple[str, ...],
    place: str,
    stage: str,
    origin: dict[str, str],
) -> None:
    """Write one source's values into `config`, one key at a time so that each mistake can be named."""
    if not isinstance(values, dict):
        raise RecipeError(
            f"{'.'.join(path)} {at(place)} is a section: set its keys ({', '.join(hints(cls))}), not {values!r}."
        )
    for name, value in values.items():
        key = ".".join((*path, str(name)))
        where = at(place)
        if name not in hints(cls):
            raise RecipeError(f"Unknown key {key} {where}{nearest_key(key)}.")
        if not path and ONLY.get(name, stage) != stage:
            raise RecipeError(
                f"The section {name} {where} is for {ONLY[name]} recipes: remove it from this {stage} recipe."
            )
        if key == "stage" and value != stage:
            raise RecipeError(f"stage {where} is {value!r}, but the recipe is used for {stage}.")
        hint = hints(cls)[name]
        if dataclasses.is_dataclass(hint):
            _apply(config[name], value, typing.cast(type, hint), (*path, name), place, stage, origin)
            continue
        _assign(config, name, value, hint, key, where)
        origin[key] = place


def _assign(config: DictConfig, name: str, value: Any, hint: Any, key: str, where: str) -> None:
    wrong = RecipeError(f"{key} {where} must be {describe(hint)}, not {value!r}.")
    base = not_none(hint)
    if isinstance(value, bool) and base in (int, float, str, int | str):
        raise wrong
    try:
        if typing.get_origin(base) is dict and isinstance(value, dict) and value:
            value = OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(config[name])), value)  # {} clears
        OmegaConf.update(config, name, value, merge=False)
    except (OmegaConfBaseException, TypeError):  # TypeError: a mapping merged into a list
        raise wrong from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
