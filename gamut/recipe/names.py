"""The names and types of a recipe's keys, in words, and the names that keys had before."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from gamut.errors import RecipeError, nearest
from gamut.recipe import schema

# Earlier name -> current name of keys and sections, for recipes, run folders and checkpoints of earlier versions. Names
# that a user wrote are read with a warning, those that a program wrote without.
RENAMED = {"guard.leap": "guard.loss_spike", "guard.drift_steps": "guard.divergence_steps"}

# What other programs call them (last name -> our key), for whoever types it out of habit
ELSEWHERE = {
    "batch_size": "step.clips", "learning_rate": "optim.lr", "max_epochs": "epochs",
    "num_epochs": "epochs", "num_train_epochs": "epochs", "num_workers": "loader.workers", "output_dir": "run.folder",
    "pretrained": "init", "wd": "optim.weight_decay",
}  # fmt: skip


# What is no key of a recipe, since others say it: name -> who, and how
GPUS = "the number of GPUs is the launcher's: deepspeed --num_gpus N, or launchers/slurm.py ... --gpus N"
BY_OTHERS = dict.fromkeys(("gpus", "num_gpus", "n_gpus", "devices", "nproc_per_node", "world_size"), GPUS) | {
    "nodes": "the number of nodes is the launcher's: launchers/slurm.py ... --nodes N",
    "num_nodes": "the number of nodes is the launcher's: launchers/slurm.py ... --nodes N",
    "device": "a run takes the GPUs of the machine; for the CPU set DS_ACCELERATOR=cpu in the environment",
    "cuda": "a run takes the GPUs of the machine; for the CPU set DS_ACCELERATOR=cpu in the environment",
    "resume": "the same command again goes on from the last checkpoint",
}


def current(key: str) -> str:
    """The current name of a dotted key.

    >>> current("optim.lr")
    'optim.lr'
    """
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def by_current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested values of a recipe under their current names, and the list of the earlier names among them.

    Raises RecipeError where a key is given under both names.
    """
    changed, found = copy.deepcopy(dict(values)), []
    for old, new in RENAMED.items():
        sections = _sections(changed, old)
        last = old.rpartition(".")[2]
        if sections is None or last not in sections[-1]:
            continue
        found.append(old)
        value = sections[-1].pop(last)
        for above, name in zip(sections[-2::-1], old.split(".")[-2::-1], strict=True):
            if not above[name]:
                del above[name]
        target = changed
        *into, last = new.split(".")
        for name in into:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise RecipeError(f"{old} is now called {new}, for which {name} must be a section, not {target!r}.")
        if last in target:
            raise RecipeError(f"{new} is set twice, also under its earlier name {old}: remove that.")
        target[last] = value
    return changed, found


def _sections(values: dict[str, Any], key: str) -> list[dict[str, Any]] | None:
    """The mappings from `values` down to the one that would hold the last name of `key`."""
    found: list[Any] = [values]
    for name in key.split(".")[:-1]:
        found.append(found[-1].get(name))
        if not isinstance(found[-1], dict):
            return None
    return found


@cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> type of a section's dataclass, in order."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in dataclasses.fields(cls)}


def keys(cls: type = schema.Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe that holds a value: `optim.lr`, `data`, ..."""
    for name, hint in hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest_key(key: str) -> str:
    """The end of a sentence about an unknown dotted key: the valid key that was probably meant.

    A key of the same last name in another section comes first (`lr` means optim.lr), then the likeliest of its section.
    """
    known = list(keys())
    section, _, last = key.rpartition(".")
    if key in BY_OTHERS:
        return f"; {BY_OTHERS[key]}"
    if last in ELSEWHERE:
        return f"; it is called {ELSEWHERE[last]} here"
    same = [k for k in known if k.rpartition(".")[2] == last]
    if len(same) == 1:
        return f"; the nearest valid name is {same[0]}"
    siblings = [k[len(section) + 1 :] for k in known if section and k.startswith(section + ".")]
    if siblings:
        return nearest(last, siblings, f"{section}.") or f"; {section} has {', '.join(siblings)}"
    sections = sorted({k.split(".")[0] for k in known if "." in k})
    if hit := nearest(key, known + sections):
        return hit
    near = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in known], n=1, cutoff=0.5)
    full = [k for k in known if near and k.rpartition(".")[2] == near[0]]
    return f"; the nearest valid name is {full[0]}" if full else f"; the sections are {', '.join(sections)}"


def not_none(hint: Any) -> Any:
    """A type without None: of `int | None` the int; `int | str` as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def describe(hint: Any) -> str:
    """A type in words: `a whole number`, `a list of 2 numbers`, ..."""
    base = not_none(hint)
    args = typing.get_args(base)
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        int | str: "a whole number or a name",
    }
    if base in words:
        text = words[base]
    elif typing.get_origin(base) is tuple:
        text = f"a list of {len(args)} numbers"
    elif typing.get_origin(base) is list:
        inner = not_none(args[0])
        deeper = typing.get_origin(inner) is list
        element = typing.get_args(inner)[0] if deeper else args[0]
        kinds = {int: "whole numbers", float: "numbers", int | str: "whole numbers or names"}
        text = f"a list of {'lists of ' if deeper else ''}{kinds[element]}"
    else:
        text = "a mapping of names to numbers" if args[1] is float else "a mapping"
    return text if base is hint else f"{text} or null"
