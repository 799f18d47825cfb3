"""A recipe once it is resolved: as YAML for the run folder, as a hash for the tracker, and read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gamut.errors import RecipeError
from gamut.recipe.check import check, flatten
from gamut.recipe.schema import Recipe

# What may change from one attempt of a run to the next: where things lie, how often they are saved, shown and probed,
# and how many processes load them. None of these decides a number. The data itself is held to by the index fingerprint.
FREE = ("run.", "track.", "checkpoint.", "probe.", "loader.", "remote.", "compute.", "guard.", "data")


def resolved_yaml(recipe: Recipe) -> str:
    """Every key of the recipe with its value, as YAML in the order of the schema."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits over all that decides the run's numbers: the same for two runs of the same experiment."""
    decides = {key: value for key, value in flatten(recipe).items() if not key.startswith(FREE)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def read_resolved(path: Path) -> Recipe:
    """The recipe that `resolved_yaml` wrote to `path`. Raises RecipeError where it is missing or does not fit."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.create(values))
        recipe = cast(Recipe, OmegaConf.to_object(config))
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"The resolved recipe {path} cannot be read: {reason}.") from None
    check(recipe)
    return recipe


def differences(old: Recipe, new: Recipe) -> list[str]:
    """`key: old -> new` for every value that decides the run's numbers and is not the same in both."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before[key]!r} -> {after[key]!r}"
        for key in before
        if not key.startswith(FREE) and before[key] != after[key]
    ]
