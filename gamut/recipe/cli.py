"""The command line that every stage shares: `run.py RECIPE [key=value ...] [--dry-run]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gamut.commands import as_typed, typed
from gamut.errors import RecipeError, ShardError, nearest
from gamut.recipe.find import CONFIGS, STAGES, list_recipes
from gamut.recipe.schema import Recipe
from gamut.remote import is_remote

_OPTIONS = ("--dry-run", "--help", "--local_rank")


@dataclass(frozen=True)
class Command:
    """The parsed command line."""

    recipe: Recipe
    name: str  # the recipe's name or path, as typed
    overrides: tuple[str, ...]
    dry_run: bool
    local_rank: int | None  # as the deepspeed launcher passes it; None when it did not


def parse(stage: str, argv: list[str], configs: Path = CONFIGS) -> Command:
    """The recipe and options in `argv` (without the program's name).

    `--local_rank N` or `--local_rank=N` may be anywhere. Without a recipe the stage's recipes are listed and the
    process exits with status 2; `--help` exits with 0. Raises RecipeError for any other mistake.
    """
    words: list[str] = []
    dry_run, local_rank = False, None
    arguments = iter(argv)
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option in ("--local_rank", "--local-rank"):
            value = value or next(arguments, "")
            if not value.isdigit():
                raise RecipeError(f"--local_rank needs a number, not {value!r}.")
            local_rank = int(value)
        elif argument == "--dry-run":
            dry_run = True
        elif argument in ("--help", "-h"):
            _say(usage(stage, configs), local_rank)
            raise SystemExit(0)
        elif argument.startswith("-"):
            raise RecipeError(f"Unknown option {argument}{nearest(option, _OPTIONS)}; see --help.")
        else:
            words.append(argument)
    names = [word for word in words if "=" not in word]
    overrides = tuple(word for word in words if "=" in word)
    if not names:
        _say(usage(stage, configs), local_rank, error=True)
        raise SystemExit(2)
    if len(names) > 1:
        raise RecipeError(
            f"{names[1]!r} on the command line is not an override; write key=value, such as optim.lr=3e-4 "
            f"(the recipe is {names[0]})."
        )
    from gamut.recipe.load import load_recipe  # imported late: OmegaConf is slow to import, and --help does not need it

    recipe = load_recipe(stage, names[0], overrides, configs)
    return Command(recipe, names[0], overrides, dry_run, local_rank)


def usage(stage: str, configs: Path = CONFIGS) -> str:
    recipes = "\n".join(f"  {name}" for name in list_recipes(stage, configs))
    return (
        f"usage: {typed(stage)} RECIPE [key=value ...] [--dry-run]\n\n"
        f"example: {as_typed(STAGES[stage].example)}\n\n"
        f"  RECIPE       one of the recipes below, or a path to a YAML file\n"
        f"  key=value    overrides a key of the recipe, such as optim.lr=3e-4 or run.name=second_try\n"
        f"  --dry-run    show the resolved recipe and the plan, and train nothing\n\n"
        f"{stage} recipes:\n{recipes}"
    )


def require_data(recipe: Recipe) -> Path:
    """The folder of the recipe's shards, or for a remote set the folder on this node with its index.

    Raises ShardError, with the command that makes them, where they are missing; also where a remote place cannot be
    read.
    """
    if is_remote(recipe.data):
        from gamut.remote.mirror import mirror

        return mirror(recipe.data, recipe.remote)
    if recipe.data and Path(recipe.data).is_dir():
        return Path(recipe.data)
    if not recipe.data:
        raise ShardError(f"The recipe of {recipe.run.name} sets no data; add data=FOLDER with a shard set.")
    converter = recipe.dataset or "folder"
    raise ShardError(
        f"There are no shards at {recipe.data}. Make them with `python -m gamut.shards convert {converter} SRC "
        f"{recipe.data}`, or set their place with data=FOLDER or the environment variable GAMUT_DATA."
    )


def set_folders(data: str, mixture: Mapping[str, float]) -> list[str]:
    """The folders of a mixture's sets, each inside `data` unless it is a path of its own; without a mixture `data`."""
    return [name if is_remote(name) else os.path.join(data, name) for name in mixture] or [data]


def require_sets(recipe: Recipe) -> list[Path]:
    """The folders of the recipe's shard sets: one, or those of its mixture. Raises ShardError as `require_data`."""
    return [require_data(replace(recipe, data=folder)) for folder in set_folders(recipe.data, recipe.mixture)]


def _say(text: str, local_rank: int | None, error: bool = False) -> None:
    """Print from the first rank only."""
    if (local_rank or int(os.environ.get("RANK", "0") or 0)) == 0:
        print(text, file=sys.stderr if error else sys.stdout)
