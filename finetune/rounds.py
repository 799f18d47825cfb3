"""Rounds of a fine-tuning run: one for every set of test folds and every seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from gamut.errors import RecipeError
from gamut.plan import Clips
from gamut.recipe import schema
from gamut.shards import Index
from gamut.shards.index import no_column

Fold = int | str  # a value of the column, or one of the names that the index has for them


@dataclass(frozen=True)
class Round:
    """One training and one scoring, on folds that do not overlap."""

    train: tuple[Fold, ...]
    test: tuple[Fold, ...]
    seed: int
    validation: tuple[Fold, ...] = ()  # selects the epoch; empty: the last one is

    @property
    def name(self) -> str:
        """`test-4-5-seed-0`"""
        return f"test-{'-'.join(map(str, self.test))}-seed-{self.seed}"

    def recipe(self, recipe: schema.Recipe) -> schema.Recipe:
        """The round as a recipe of its own: a run inside the run's folder."""
        validation = list(self.validation) or None
        folds = replace(recipe.folds, test=[list(self.test)], train=list(self.train), validation=validation)
        return replace(
            recipe,
            seed=self.seed,
            folds=folds,
            finetune=replace(recipe.finetune, seeds=1),
            run=replace(recipe.run, name=f"{recipe.run.name}/{self.name}"),
        )


def folds_of(text: str) -> list[Fold]:
    """`1,2` -> [1, 2]; `train,validation` -> their names"""
    return [int(part) if part.isdigit() else part for part in text.split(",") if part]


def rounds(recipe: schema.Recipe, index: Index) -> list[Round]:
    """Every round of a recipe, test folds first, then seeds.

    Raises RecipeError where the shards have no such column, a fold that the recipe names is in none of their clips,
    or a round would train on clips that it is scored on; ShardError for a name that the column does not have.
    """
    folds = recipe.folds
    if folds.column not in index.columns:
        raise RecipeError(
            f"folds.column is {folds.column!r}. {no_column(index, folds.column)} To score by another column, set "
            "folds.column, folds.test and folds.train to it and its values."
        )
    present = sorted(int(fold) for fold in np.unique(index.columns[folds.column]))
    validation = folds.validation or []
    result = []
    for test in folds.test:
        scored = _values(index, folds.column, present, test)
        choosing = _values(index, folds.column, present, validation)
        train: list[Fold] = [fold for fold in present if fold not in scored | choosing]
        train = folds.train if folds.train is not None else train
        trained = _values(index, folds.column, present, train)
        if scored & trained or scored & choosing or trained & choosing or not trained or not scored:
            raise RecipeError(
                f"A round trains on the folds {list(train)}"
                + (f", chooses the epoch on {validation}" if validation else "")
                + f" and tests on {test}; they must not overlap or be empty."
            )
        for repeat in range(recipe.finetune.seeds):
            result.append(Round(tuple(train), tuple(test), recipe.seed + repeat, tuple(validation)))
    return result


def require_labels(index: Index, clips: Clips | None, folds: Iterable[Fold]) -> None:
    """Raises RecipeError where clips of these folds have no label: accuracy, and any metric like it, would take them
    for some class."""
    if clips is None:
        return
    rows = np.asarray(clips.row)
    bare = rows[np.diff(np.asarray(index.label_offset))[rows] == 0]
    if len(bare):
        raise RecipeError(
            f"{len(bare)} of {len(rows)} clips of the folds {list(folds)} have no label, such as "
            f"{index.key(int(bare[0]))}, and finetune.metric needs one of each. Name other folds with "
            " folds.train, folds.validation and folds.test, or leave these clips out with subset.label or "
            "subset.keys."
        )


def _values(index: Index, column: str, present: list[int], folds: Iterable[Fold]) -> set[int]:
    """The column's values that these folds stand for, each in at least one clip."""
    values: set[int] = set()
    missing = []
    for fold in folds:
        found = {int(value) for value in np.unique(index.columns[column][index.where({column: [fold]})])}
        values |= found
        missing += [] if found else [fold]
    if missing:
        named = ", ".join(index.names.get(column, {}))
        raise RecipeError(
            f"The recipe names the folds {missing}, but {index.folder} has {present}{f' ({named})' if named else ''}: "
            "set folds.test, folds.train and folds.validation."
        )
    return values
