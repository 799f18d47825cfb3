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

_OPTIONS = ("--dry-run", "--full", "--help", "--local_rank")


@dataclass(frozen=True)
class Command:
    """The parsed command line."""

    recipe: Recipe
    name: str  # the recipe's name or path, as typed
    overrides: tuple[str, ...]
    dry_run: bool
    local_rank: int | None  # as the deepspeed launcher passes it; None when it did not
    full: bool = False  # a dry run shows the resolved recipe, too


def parse(stage: str, argv: list[str], configs: Path = CONFIGS) -> Command:
    """The recipe and options in `argv` (without the program's name).

    `--local_rank N` or `--local_rank=N` may be anywhere. Without a recipe the stage's recipes are listed and the
    process exits with status 2; `--help` exits with 0. Raises RecipeError for any other mistake.
    """
    words: list[str] = []
    dry_run, full, local_rank = False, False, None
    arguments = iter(argv)
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option in ("--local_rank", "--local-rank"):
            value = value or next(arguments, "")
            if not value.isdigit():
                raise RecipeError(f"--local_rank needs a number, not {value!r}.")
            local_rank = int(value)
        elif argument in ("--dry-run", "--full"):
            dry_run, full = True, full or argument == "--full"
        elif argument in ("--help", "-h"):
            _say(usage(stage, configs), local_rank)
            raise SystemExit(0)
        elif argument.startswith("-"):
            raise RecipeError(f"Unknown option {argument}{_as_key(option) or nearest(option, _OPTIONS)}; see --help.")
        else:
            words.append(argument)
    names = [word for word in words if "=" not in word]
    overrides = tuple(word for word in words if "=" in word)
    if not names:
        _say(usage(stage, configs), local_rank, error=True)
        raise SystemExit(2)
    if stray := names[1:] + ["="] * ("=" in overrides):
        raise RecipeError(
            f"{stray[0]!r} on the command line is not an override; write key=value, such as {_joined(words)} "
            f"(the recipe is {names[0]})."
        )
    from gamut.recipe.load import load_recipe  # imported late: OmegaConf is slow to import, and --help does not need it

    recipe = load_recipe(stage, names[0], overrides, configs)
    return Command(recipe, names[0], overrides, dry_run, local_rank, full)


def _as_key(option: str) -> str:
    """The end of a sentence about an option that is a key of a recipe; empty for another."""
    key = option.lstrip("-").replace("-", "_")
    return f": keys of the recipe are given as {key}=VALUE" if _is_key(key) else ""


def _joined(words: list[str]) -> str:
    """The first key among the words with the value that is typed apart from it, or any override."""
    for word, *rest in zip(words, words[1:], [*words[2:], ""]):
        if _is_key(word) and (value := next((one for one in rest if one not in ("=", "")), "")):
            return f"{word}={value.removeprefix('=')}"
    return "optim.lr=3e-4"


def _is_key(word: str) -> bool:
    from gamut.recipe.names import keys  # imported late, as above

    return word in set(keys())


def usage(stage: str, configs: Path = CONFIGS) -> str:
    recipes = "\n".join(f"  {name}" for name in list_recipes(stage, configs))
    return (
        f"usage: {typed(stage)} RECIPE [key=value ...] [--dry-run [--full]]\n\n"
        f"example: {as_typed(STAGES[stage].example)}\n\n"
        f"  RECIPE       one of the recipes below, or a path to a YAML file\n"
        f"  key=value    overrides a key of the recipe, such as optim.lr=3e-4 or run.name=second_try\n"
        f"  --dry-run    show the plan and what it would take, and train nothing\n"
        f"  --full       with every key of the resolved recipe that the stage reads\n\n"
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
    if Path(recipe.data).exists():
        raise ShardError(f"data={recipe.data} is a file. Name the folder that `python -m gamut.shards convert` wrote.")
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
