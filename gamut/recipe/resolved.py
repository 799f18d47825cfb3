"""A recipe once it is resolved: as YAML for the run folder, as a hash for the tracker, read back, and compared."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gamut.errors import RecipeError
from gamut.recipe.check import check
from gamut.recipe.names import by_current_names, current, hints, keys
from gamut.recipe.schema import Recipe
from gamut.recipe.text import parse_yaml
from gamut.settings import about, flatten

# Where things lie, and which clips of theirs: of no use to anybody else, and not for everybody's eyes.
PLACES = ("data", "init", "features", "encoder", "mixture", "subset")
# What checkpoints of earlier versions did not record, though it decides numbers.
UNRECORDED = ("init", "engine", "deepspeed")
# Keys that came after the first runs: at its default such a key leaves the hash of a recipe what it was without it.
ADDED = (
    *("model.backbone", "model.norm", "objective", "options", "optim.undecayed", "extract.pad_with"),
    *("finetune.weight_frames", "finetune.weight_clips", "finetune.median_frames", "finetune.freeze"),
    *("asit.encode", "asit.visible", "asit.clones", "asit.predictor", "asit.predictor_dim", "asit.predictor_depth"),
    *("asit.targets", "asit.target_blocks", "asit.mixtures", "plan.block"),
)


def resolved_yaml(recipe: Recipe) -> str:
    """Every key of the recipe with its value, as YAML in the order of the schema."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def read_yaml(recipe: Recipe) -> str:
    """The same without the sections and keys that are for other stages."""
    config = OmegaConf.structured(recipe)
    own = [name for name, known in about(Recipe).items() if known.stage in ("", recipe.stage)]
    return OmegaConf.to_yaml(OmegaConf.masked_copy(config, own))


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits over all that decides the run's numbers: the same for two runs of the same experiment."""
    defaults = decisive(Recipe())
    said = {key: value for key, value in decisive(recipe).items() if key not in ADDED or value != defaults[key]}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def read_resolved(path: Path) -> Recipe:
    """The recipe that `resolved_yaml` wrote to `path`. Raises RecipeError where it is missing or does not fit."""
    recipe = _of_values(read_values(path), path)
    check(recipe)
    return recipe


def portable(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of the model and of its training, nested, as JSON holds it: what may leave the machine with
    the weights, so without places and what may change."""
    kept = {name: value for name, value in asdict(recipe).items() if decides(name)}
    kept["plan"]["weights"] = Path(recipe.plan.weights).name
    return json.loads(json.dumps(kept | {"run": {"name": recipe.run.name}}))


def read_portable(values: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe that `portable` gave, as the file at `path` has it: good for evaluation, since a training may need the
    places that it lacks. Raises RecipeError where it does not fit."""
    try:
        return _of_values(by_current_names(values)[0], path)
    except (AttributeError, TypeError) as error:
        raise _unreadable(path, error) from None


def _of_values(values: Mapping[str, Any], path: Path) -> Recipe:
    try:
        config = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.create(dict(values)))
        recipe = cast(Recipe, OmegaConf.to_object(config))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None
    return recipe


def read_values(path: Path) -> dict[str, Any]:
    """What a resolved recipe says, nested, by the names that keys have today. It need not fit the schema: for what is
    asked of the recipes of other versions. Raises RecipeError where it cannot be read."""
    try:
        return by_current_names(parse_yaml(path.read_text(encoding="utf-8"), path.name))[0]
    except (OSError, RecipeError, AttributeError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> RecipeError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return RecipeError(f"The resolved recipe {path} cannot be read: {reason}.")


@functools.cache
def may_change(key: str) -> bool:
    """Whether another attempt of a run may give the key (`loader.workers`) another value.

    So it is with what decides no number: where things lie, how often they are saved, shown and probed, how work is
    spread. The schema says it beside each key.
    """
    parts, cls = key.split("."), Recipe
    for number, part in enumerate(parts):
        free = about(cls)[part].may_change if part in hints(cls) else False
        if isinstance(free, tuple):
            rest = ".".join(parts[number + 1 :])
            return any(f"{rest}.".startswith(f"{entry}.") for entry in free)
        if free or part not in hints(cls) or not is_dataclass(hints(cls)[part]):
            return free
        cls = hints(cls)[part]
    return False


def decides(key: str) -> bool:
    """Whether a key decides numbers, other than by where things lie; one of another version is taken to."""
    return key.partition(".")[0] not in PLACES and not may_change(key)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe that affects what is computed, flat, as JSON holds it: {"optim.lr": 0.0005, ...}."""
    flat = {key: value for key, value in flatten(recipe, mappings=True).items() if not may_change(key)}
    return json.loads(json.dumps(flat))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two recipes (of `decisive`) say differently: key -> (then, now), None where one of them does not say it."""
    changed = {key: (then.get(key), now.get(key)) for key in [*then, *(key for key in now if key not in then)]}
    # An empty mapping says no more than none of its entries.
    return {key: values for key, values in changed.items() if values[0] != values[1] and {} not in values}


def recorded(record: Mapping[str, Any], now: Recipe) -> dict[str, Any]:
    """What a checkpoint recorded of its recipe (`decisive`, maybe of an earlier version), as `decisive` says it today.

    What that recipe did not know was done as its default says; what was not recorded though known is taken from `now`.
    """
    then = {current(key): value for key, value in record.items()}
    then = {key: value for key, value in then.items() if not may_change(key)}
    names = set(keys())
    given = {_key_of(key, names) for key in then}
    if "engine" not in given:
        then |= {key: value for key, value in decisive(now).items() if _key_of(key, names) in UNRECORDED}
    given |= set(UNRECORDED)
    then |= {key: value for key, value in decisive(Recipe()).items() if _key_of(key, names) not in given}
    return then


def _key_of(key: str, names: set[str]) -> str:
    """The schema's key that an entry of a mapping is in: `subset` of `subset.fold`."""
    while key not in names and "." in key:
        key = key.rpartition(".")[0]
    return key
