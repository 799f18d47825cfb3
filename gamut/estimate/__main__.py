"""What a run would take on GPUs that are not here: memory, time, hours, cost.

    python -m gamut.estimate asit_b_4096 --nodes 8 --gpus 8 --gpu h100
    python -m gamut.estimate finetune elastic_audioset loader.packs_per_forward=12 --gpus 8 --detail
    python -m gamut.estimate asit_b --compare asit_b_4096 --gpus 8
    python -m gamut.estimate asit_b --compare loader.packs_per_forward=4

The recipe's own step (prepare, forward, backward, update) runs on tensors that have no values, and every call on the
device is counted with its operations, bytes, launches, memory and waits of the host. Rates of devices make it time:
those of data sheets and assumptions named in the output, or measured ones (`--measure FILE` here, then `--rates FILE`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gamut.commands import command, parser_of, positive
from gamut.errors import RecipeError
from gamut.estimate.rates import SHEETS
from gamut.recipe.find import list_recipes

if TYPE_CHECKING:
    import argparse

    from gamut.estimate.rates import Rates
    from gamut.recipe.schema import Recipe

STAGES = ("pretrain", "finetune")


@command
def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    if options.measure is not None:
        from gamut.estimate.measure import measure  # here: --help need not wait for torch

        options.measure.write_text(measure().to_json())
        print(options.measure)
        return 0
    recipes = {" ".join(options.words): recipe_of(options.words)}
    for others in [options.compare] if options.compare else []:
        words = others if any("=" not in word for word in others) else [*options.words, *others]
        recipes[" ".join(words)] = recipe_of(words)

    from rich.console import Console

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for a device when it is imported
    from gamut.estimate import report
    from gamut.estimate.forecast import estimate

    rates = rates_of(options)
    made = [estimate(recipe, rates, options.nodes, options.gpus, options.clips) for recipe in recipes.values()]
    console = Console()
    console.print(report.table(made, list(recipes), options.price))
    if options.detail:
        for each in made:
            console.print(report.dearest(each))
    for note in dict.fromkeys(note for each in made for note in report.notes(each)):
        console.print(note, highlight=False, markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("estimate", __doc__, allow_abbrev=False)
    parser.add_argument(
        "words", nargs="*", metavar="RECIPE [key=value ...]", help="the recipe, its stage before it if need be"
    )
    parser.add_argument("--nodes", type=positive, default=1, help="number of nodes (default: %(default)s)")
    parser.add_argument("--gpus", type=positive, default=1, metavar="M", help="GPUs a node (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--gpu", choices=SHEETS, default="h100", help="rates of a data sheet (default: %(default)s)")
    which.add_argument("--rates", type=Path, metavar="FILE", help="rates that were measured")
    which.add_argument("--measure", type=Path, metavar="FILE", help="measure this machine's, write them, do no more")
    parser.add_argument("--price", type=float, metavar="P", help="of a GPU and hour")
    parser.add_argument("--clips", type=positive, metavar="N", help="of the set, where it is not on this machine")
    parser.add_argument("--detail", action="store_true", help="the twenty dearest lines of the source")
    parser.add_argument("--compare", nargs="+", metavar="WORD", help="beside another recipe, or other values of keys")
    return parser


def recipe_of(words: list[str]) -> Recipe:
    """`[STAGE] RECIPE [key=value ...]`. Raises RecipeError where a name is of no stage, or of two."""
    from gamut.recipe.load import load_recipe

    names = [word for word in words if "=" not in word]
    overrides = tuple(word for word in words if "=" in word)
    stages = [names.pop(0)] if names and names[0] in STAGES else list(STAGES)
    if len(names) != 1:
        raise RecipeError("One recipe is estimated: give its name, and what else it should be as key=value.")
    found = [stage for stage in stages if names[0] in list_recipes(stage)]
    if len(found) > 1:
        raise RecipeError(f"{names[0]} is a recipe of {' and '.join(found)}: write {found[0]} {names[0]}.")
    return load_recipe((found or stages)[0], names[0], overrides)


def rates_of(options: argparse.Namespace) -> Rates:
    from gamut.estimate import rates

    return rates.of_sheet(options.gpu) if options.rates is None else rates.read(options.rates)


if __name__ == "__main__":
    sys.exit(main())
