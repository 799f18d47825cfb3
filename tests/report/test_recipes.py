"""The shipped recipe that is nearest to a run's."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from gamut.recipe.find import STAGES, list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import decides, decisive, differences
from gamut.report import recipes
from gamut.report.recipes import changed_from_shipped


def decided(stage: str, name: str, *words: str) -> dict[str, Any]:
    said = decisive(load_recipe(stage, name, words))
    return {key: value for key, value in said.items() if decides(key)}


@pytest.mark.parametrize(
    "stage", ["pretrain", *(pytest.param(one, marks=pytest.mark.long) for one in STAGES if one != "pretrain")]
)
def test_the_nearest_is_that_of_all_with_the_fewest_other_keys(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "written", functools.cache(recipes.written))
    names = list_recipes(stage)
    shipped = {name: decided(stage, name) for name in names}
    words = {"pretrain": ["optim.lr=3.5e-4", "epochs=7"], "finetune": ["optim.lr=3.5e-4", "seed=3"]}
    for name in names:
        mine = decided(stage, name, *words.get(stage, ["precision=bf16"]))
        found, changed = changed_from_shipped(mine | {"stage": stage})
        counts = {other: len(differences(there, mine)) for other, there in shipped.items()}
        assert len(changed) == counts[found] == min(counts.values()), (name, found, counts[found], min(counts.values()))
