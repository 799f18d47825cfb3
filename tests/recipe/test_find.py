"""Which file a recipe's name means: Gamut's own, those of GAMUT_RECIPES, and what lies beside a recipe."""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path

import pytest

from gamut.commands import COMMANDS
from gamut.errors import RecipeError
from gamut.recipe.find import CONFIGS, STAGES, find_recipe, list_recipes
from gamut.recipe.load import load_recipe
from gamut.train.main import Work
from launchers.cluster import load_cluster


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_folders_of_the_environment_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ours" / "pretrain" / "birds" / "small.yaml", "defaults: asit_tiny\nseed: 5")
    write(tmp_path / "mine" / "clusters" / "attic.yaml", "gpus: 3")
    monkeypatch.setenv("GAMUT_RECIPES", f"{tmp_path / 'ours'}{os.pathsep}{tmp_path / 'mine'}")
    recipe = load_recipe("pretrain", "birds/small")
    assert (recipe.run.name, recipe.seed) == ("birds/small", 5)
    assert recipe.model == load_recipe("pretrain", "asit_tiny").model
    assert {"birds/small", "asit_tiny"} <= {*list_recipes("pretrain")}
    assert load_cluster("attic", {}).gpus == 3
    with pytest.raises(RecipeError, match=r"birds/small.*ours/pretrain"):
        load_recipe("pretrain", "birds/smal")


def test_a_name_that_two_folders_give_is_refused_naming_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clash = write(tmp_path / "pretrain" / "asit.yaml", "defaults: asit_tiny\nseed: 7")
    monkeypatch.setenv("GAMUT_RECIPES", str(tmp_path))
    with pytest.raises(RecipeError) as caught:
        load_recipe("pretrain", "asit")
    assert str(clash) in str(caught.value)
    assert "configs/pretrain/asit.yaml" in str(caught.value)
    assert load_recipe("pretrain", str(clash)).seed == 7
    # asit_tiny inherits the asit beside it, whatever else is called so
    assert load_recipe("pretrain", "asit_tiny").seed == 0


def test_the_same_folder_twice_is_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMUT_RECIPES", f"{CONFIGS}{os.pathsep}{CONFIGS / '..' / 'configs'}")
    assert find_recipe("pretrain", "asit") == CONFIGS / "pretrain" / "asit.yaml"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMUT_RECIPES", str(tmp_path / "gone"))
    with pytest.raises(RecipeError, match=r"GAMUT_RECIPES.*gone"):
        load_recipe("pretrain", "asit_tiny")


@pytest.mark.parametrize("name", ["mine", "asit_tiny"])
def test_a_recipe_of_ones_own_inherits_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Even one called as what it inherits: it does not inherit itself."""
    write(tmp_path / f"{name}.yaml", "defaults: asit_tiny\noptim: {lr: 1e-2}")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("pretrain", f"./{name}.yaml")
    assert (recipe.run.name, recipe.optim.lr) == (name, 1e-2)
    assert recipe.model == load_recipe("pretrain", "asit_tiny").model


def test_every_stage_has_what_the_table_says() -> None:
    for name, stage in STAGES.items():
        assert list_recipes(name)
        assert name in COMMANDS
        assert name in stage.example
        assert callable(pkgutil.resolve_name(stage.check))
        assert not stage.work or issubclass(pkgutil.resolve_name(stage.work), Work)
