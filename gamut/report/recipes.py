"""A run's recipe as a diff to the shipped one that is nearest to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from gamut.errors import GamutError
from gamut.recipe.find import STAGES, list_recipes
from gamut.recipe.load import load_recipe, written
from gamut.recipe.resolved import decides, decisive, differences
from gamut.recipe.schema import Recipe

CANDIDATES = 4  # nearest by their files alone, which are composed to see which is nearest


def changed_from_shipped(recipe: Mapping[str, Any]) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """(name of the shipped recipe that differs in the fewest keys, key -> (there, here)): of keys that decide numbers,
    without the places where things lie. recipe: flat, by the names of today. ("", {}) where there is none."""
    stage = recipe.get("stage")
    if stage not in STAGES:
        return "", {}
    mine = {key: value for key, value in json.loads(json.dumps(dict(recipe))).items() if decides(key)}
    best: tuple[str, dict[str, tuple[Any, Any]]] = ("", {})
    for name in sorted(_likely(stage, mine)[:CANDIDATES]):
        there = _decided(stage, name)
        if there is None:
            continue
        # What an earlier version did not know it did as the default says, which cannot be told from here.
        changed = {key: values for key, values in differences(there, mine).items() if key in mine}
        if not best[0] or len(changed) < len(best[1]):
            best = (name, changed)
    return best


def _likely(stage: str, mine: Mapping[str, Any]) -> list[str]:
    """The shipped recipes, in order of the keys of which their files, read as they are, say something else: composing
    and checking all of them would take seconds at the end of every run."""
    unsaid = decisive(Recipe())
    apart = {}
    for name in list_recipes(stage):
        with contextlib.suppress(GamutError):  # of a plugin that is not here, or of variables that are not set
            there = unsaid | written(stage, name)
            apart[name] = sum(not _alike(there.get(key), value) for key, value in mine.items())
    return sorted(apart, key=lambda name: (apart[name], name))


def _alike(said: Any, value: Any) -> bool:
    """Whether YAML's value is that of a recipe: `1e-3` is a text to YAML."""
    try:
        return said == value or float(said) == float(value)
    except (TypeError, ValueError):
        return False


@cache
def _decided(stage: str, name: str) -> dict[str, Any] | None:
    """What a shipped recipe decides; None where it cannot be composed here."""
    try:
        return {key: value for key, value in decisive(load_recipe(stage, name)).items() if decides(key)}
    except GamutError:
        return None


def show(value: Any) -> str:
    """A value as a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
