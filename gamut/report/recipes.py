"""A run's recipe as a diff to the shipped one that is nearest to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from gamut.errors import GamutError
from gamut.recipe.find import STAGES, list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import decides, decisive, differences


def changed_from_shipped(recipe: Mapping[str, Any]) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """(name of the shipped recipe that differs in the fewest keys, key -> (there, here)): of keys that decide numbers,
    without the places where things lie. recipe: flat, by the names of today. ("", {}) where there is none."""
    stage = recipe.get("stage")
    if stage not in STAGES:
        return "", {}
    mine = {key: value for key, value in json.loads(json.dumps(dict(recipe))).items() if decides(key)}
    best: tuple[str, dict[str, tuple[Any, Any]]] = ("", {})
    for name, there in _shipped(stage).items():
        # What an earlier version did not know it did as the default says, which cannot be told from here.
        changed = {key: values for key, values in differences(there, mine).items() if key in mine}
        if not best[0] or len(changed) < len(best[1]):
            best = (name, changed)
    return best


@cache
def _shipped(stage: str) -> dict[str, dict[str, Any]]:
    """name -> what the recipe decides."""
    found = {}
    for name in list_recipes(stage):
        with contextlib.suppress(GamutError):  # of a plugin that is not here, or of variables that are not set
            said = decisive(load_recipe(stage, name))
            found[name] = {key: value for key, value in said.items() if decides(key)}
    return found


def show(value: Any) -> str:
    """A value as a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
