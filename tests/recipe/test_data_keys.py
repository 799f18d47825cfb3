"""The keys that say which clips are drawn: `subset`, `mixture`, `plan.weights`, `plan.draws`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gamut.errors import RecipeError, ShardError
from gamut.recipe.cli import require_sets
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import evaluation_policy, training_policy
from gamut.recipe.resolved import read_resolved, resolved_yaml
from gamut.recipe.schema import Recipe

RECIPE = """
data: SETS
mixture: {big: 3, /elsewhere/small: 0.5}
subset: {fold: [1, 2], label: [dog, 3], split: train, keys: keys.txt, per_class: 10, seed: 4}
plan: {weights: balanced, draws: 5000}
step: {packs: 4, clips: 2}
folds: {column: place} # so that the fold may be chosen
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("SETS", str(tmp_path)))
    return load_recipe("finetune", str(tmp_path / "mine.yaml"))


def test_what_is_drawn_is_read_and_kept_as_written(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.mixture == {"big": 3.0, "/elsewhere/small": 0.5}
    assert recipe.subset["label"] == ["dog", 3]
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(recipe))
    assert read_resolved(tmp_path / "recipe.yaml") == recipe
    policy = training_policy(recipe)
    assert (policy.draws, policy.proportions) == (5000, (3.0, 0.5))
    policy = evaluation_policy(recipe)
    assert (policy.draws, policy.proportions) == (None, ())


def test_the_sets_of_a_mixture_lie_inside_data_or_where_they_say(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=f"no shards at {tmp_path}/big"):
        require_sets(recipe)
    (tmp_path / "big").mkdir()
    with pytest.raises(ShardError, match="no shards at /elsewhere/small"):
        require_sets(recipe)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mixture.big=0", r"mixture\.big on the command line must be above 0|mixture\.big must be above 0, not 0"),
        ("mixture.big=many", "mixture.*must be a mapping of names to numbers"),
        ("subset.share=1.5", r"subset\.share must be a number above 0, at most 1, not 1\.5"),
        ("subset.share=0.5", "subset.per_class and subset.share both set"),
        ("subset.per_class=0", r"subset\.per_class must be a whole number above 0"),
        ("subset.keys=[a]", r"subset\.keys must be the name of a file"),
        ("subset.fold=[1.5]", r"subset\.fold must be a list of whole numbers \(of 64 bits\) or names"),
        (
            "subset.fold=99999999999999999999999",
            r"subset\.fold must be a list of whole numbers \(of 64 bits\) or names",
        ),
        ("subset.seed=99999999999999999999999", r"subset\.seed must be a whole number of 0 or more"),
        ("subset.fold={a: 1}", r"subset .*must be a mapping|subset\.fold must be"),
        ("plan.draws=0", r"plan\.draws .*must be at least 1"),
    ],
)
def test_what_cannot_be_is_said(recipe: Recipe, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("finetune", str(tmp_path / "mine.yaml"), [override])
