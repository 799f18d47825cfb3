"""Rounds of a fine-tuning run: one for every set of test folds and every seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gamut.errors import RecipeError
from gamut.recipe import schema
from gamut.shards import Index


@dataclass(frozen=True)
class Round:
    """One training and one scoring, on folds that do not overlap."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    seed: int

    @property
    def name(self) -> str:
        """`test-4-5-seed-0`"""
        return f"test-{'-'.join(map(str, self.test))}-seed-{self.seed}"

    def recipe(self, recipe: schema.Recipe) -> schema.Recipe:
        """The round as a recipe of its own: a run inside the run's folder."""
        folds = replace(recipe.folds, test=[list(self.test)], train=list(self.train))
        return replace(
            recipe,
            seed=self.seed,
            folds=folds,
            finetune=replace(recipe.finetune, seeds=1),
            run=replace(recipe.run, name=f"{recipe.run.name}/{self.name}"),
        )


def rounds(recipe: schema.Recipe, index: Index) -> list[Round]:
    """Every round of a recipe, test folds first, then seeds.

    Raises RecipeError where the shards have no such column, a fold that the recipe names is in none of their clips,
    or a round would train on clips that it is scored on.
    """
    folds = recipe.folds
    if folds.column not in index.columns:
        raise RecipeError(
            f"folds.column is {folds.column!r}, but the columns of {index.folder} are {sorted(index.columns)}."
        )
    present = sorted(int(fold) for fold in np.unique(index.columns[folds.column]))
    named = {fold for test in folds.test for fold in test} | set(folds.train or [])
    if named - set(present):
        raise RecipeError(
            f"The recipe names the folds {sorted(named - set(present))}, but {index.folder} has {present}: set "
            "folds.test and folds.train."
        )
    result = []
    for test in folds.test:
        train = folds.train if folds.train is not None else [fold for fold in present if fold not in test]
        both = sorted(set(train) & set(test))
        if both or not train or not test:
            raise RecipeError(
                f"A round trains on the folds {train} and tests on {test}; they must not overlap or be empty."
            )
        for repeat in range(recipe.finetune.seeds):
            result.append(Round(tuple(train), tuple(test), recipe.seed + repeat))
    return result
