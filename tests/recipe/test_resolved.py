"""What of a recipe may change between two attempts of a run, and recipes that say a key by the name it had before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gamut.errors import RecipeError
from gamut.recipe import names
from gamut.recipe.load import load_recipe, override
from gamut.recipe.resolved import decisive, differences, may_change, read_resolved, recorded, resolved_yaml


@pytest.mark.parametrize(
    ("key", "free"),
    [
        ("loader.workers", True),
        ("remote.cache", True),
        ("data", True),
        ("dataset", True),
        ("guard.policy", True),
        ("deepspeed.wall_clock_breakdown", True),
        ("deepspeed.comms_logger.enabled", True),
        ("deepspeed.zero_optimization.reduce_bucket_size", True),
        ("deepspeed.zero_optimization.stage", False),
        ("deepspeed.zero_optimization.sub_group_size", False),
        ("deepspeed.timers_of_mine", False),
        ("deepspeed.gradient_predivide_factor", False),
        ("deepspeed", False),
        ("engine", False),
        ("init", False),
        ("precision", False),
        ("subset.fold", False),
        ("optim.lr", False),
        ("of.an.earlier.version", False),
    ],
)
def test_what_decides_no_number_may_change(key: str, free: bool) -> None:
    assert may_change(key) is free


def test_entries_of_mappings_are_compared_one_by_one() -> None:
    base = load_recipe("pretrain", "asit_tiny", ["subset={}", "deepspeed={}"])
    faster = replace(base, deepspeed={"wall_clock_breakdown": True, "zero_optimization": {"overlap_comm": False}})
    assert differences(decisive(base), decisive(faster)) == {}
    other = replace(base, subset={"fold": [1]}, deepspeed={"zero_optimization": {"stage": 2, "overlap_comm": True}})
    assert differences(decisive(base), decisive(other)) == {
        "subset.fold": (None, [1]),
        "deepspeed.zero_optimization.stage": (None, 2),
    }


def test_a_checkpoint_of_an_earlier_version_recorded_less() -> None:
    recipe = load_recipe("pretrain", "asit_tiny", ["engine=oss", "init=runs/a", "deepspeed={}", "subset.fold=[1]"])
    now = decisive(recipe)
    before = {key: value for key, value in now.items() if key.partition(".")[0] not in ("engine", "init", "deepspeed")}
    before.pop("asit.gain")  # not known then: done as its default says
    assert differences(recorded(before | {"remote.tries": 5}, recipe), now) == {}
    changed = load_recipe(
        "pretrain", "asit_tiny", ["engine=oss", "init=runs/a", "deepspeed={}", "subset.fold=[2]", "asit.gain=trained"]
    )
    found = differences(recorded(before, changed), decisive(changed))
    assert found == {"asit.gain": ("fixed", "trained"), "subset.fold": ([1], [2])}
    assert differences(recorded(now, recipe), now) == {}
    assert differences(recorded(now, recipe), decisive(replace(recipe, init="runs/b"))) == {
        "init": ("runs/a", "runs/b")
    }


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keys by other names before: one of a section, one that has moved, a whole section. -> a recipe that says them."""
    earlier = {"optim.rate": "optim.lr", "shuffled": "plan.shuffle", "passes": "epochs", "watchdog": "guard"}
    monkeypatch.setattr(names, "RENAMED", earlier)
    monkeypatch.setattr("gamut.recipe.load.RENAMED", earlier)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "defaults: asit_tiny\noptim: {rate: 0.5, eps: 1e-7}\nshuffled: false\nwatchdog: {collapse_steps: 7}"
    )
    return file


def test_a_persons_recipe_may_say_a_key_by_its_earlier_name_and_is_warned(
    renamed: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = load_recipe("pretrain", str(renamed), ["passes=3", "watchdog.policy=stop"])
    assert (recipe.optim.lr, recipe.optim.eps, recipe.plan.shuffle, recipe.epochs) == (0.5, 1e-7, False, 3)
    assert (recipe.guard.collapse_steps, recipe.guard.policy) == (7, "stop")
    said = capsys.readouterr().err.splitlines()
    for line in (
        f"warning: optim.rate in {renamed} is now called optim.lr; please rename it.",
        "warning: passes on the command line is now called epochs; please rename it.",
        "warning: watchdog on the command line is now called guard; please rename it.",
    ):
        assert said.count(line) == 1
    assert len(said) == 5
    assert override(recipe, ["optim.rate=0.25"]).optim.lr == 0.25


def test_given_by_both_names_it_is_refused(renamed: Path) -> None:
    renamed.write_text("defaults: asit_tiny\noptim: {rate: 0.5, lr: 0.5}")
    with pytest.raises(RecipeError, match=r"In .*mine\.yaml optim\.lr is set twice.* optim\.rate"):
        load_recipe("pretrain", str(renamed))
    renamed.write_text("defaults: asit_tiny\nplan: 3\nshuffled: true")
    with pytest.raises(RecipeError, match=r"shuffled is now called plan\.shuffle, for which plan must be a section"):
        load_recipe("pretrain", str(renamed))


def test_run_folders_and_checkpoints_of_earlier_versions_open_in_silence(
    renamed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = load_recipe("pretrain", "asit_tiny")
    text = resolved_yaml(recipe).replace("  lr:", "  rate:").replace("epochs: 40\n", "passes: 40\n", 1)
    text = text.replace("guard:", "watchdog:")
    assert "rate:" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert read_resolved(tmp_path / "recipe.yaml") == recipe
    now = decisive(recipe)
    before = {{"optim.lr": "optim.rate", "epochs": "passes"}.get(key, key): value for key, value in now.items()}
    assert differences(recorded(before, recipe), now) == {}
    assert capsys.readouterr().err == ""


def test_guards_are_known_by_the_names_that_they_had(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = load_recipe("pretrain", "asit_tiny", ["guard.leap=5", "guard.drift_steps=7"])
    assert (recipe.guard.loss_spike, recipe.guard.divergence_steps) == (5, 7)
    assert "guard.leap on the command line is now called guard.loss_spike" in capsys.readouterr().err
    kept = tmp_path / "recipe.yaml"
    now = resolved_yaml(recipe)
    kept.write_text(now.replace("loss_spike:", "leap:").replace("divergence_steps:", "drift_steps:"))
    assert kept.read_text() != now
    assert read_resolved(kept) == recipe
