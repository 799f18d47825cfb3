"""A teacher that collapses: seen on the step, and the run stops, or goes back to before it began and goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cases import staged
from collapse_cases import collapsing
from ranks import Ranks, run

from gamut.recipe import schema
from tests.asit import RECIPE

GUARD = schema.Guard(policy="back", loss_spike=0.0, leave_out=3, collapse_steps=4)


def recipe_of(engine: int | str = 1, keep: int = 4, **guard: object) -> schema.Recipe:
    """Four epochs of five steps, a checkpoint every two steps."""
    return staged(
        engine,
        guard=replace(GUARD, **guard),  # type: ignore[arg-type]
        optim=schema.Optim(lr=1e-4, lr_base_batch=0),
        checkpoint=schema.Checkpoint(every_epochs=0.4, every_minutes=1e9, keep=keep),
    )


@pytest.mark.long
def test_a_run_that_collapses_of_itself_is_stopped_on_the_step(tmp_path: Path) -> None:
    """Without centring (the centre never moves) and with a fast teacher, the global loss alone is trivially 0."""
    asit = replace(RECIPE.asit, weight_local=0.0, weight_reconstruction=0.0, centre_momentum=1.0, teacher_momentum=0.5)
    recipe = replace(recipe_of(policy="stop"), optim=schema.Optim(lr=1e-2, lr_base_batch=0, warmup_epochs=0.0))
    first, second = run(1, collapsing, tmp_path, recipe, asit, -1, 2)[0]
    assert "for 4 steps teacher/" in first
    assert "It was not applied" in first
    assert second == first  # from the last checkpoint, the same again


def test_a_collapse_is_flagged_once_and_by_default_trained_on(tmp_path: Path) -> None:
    ranks = Ranks(1, collapsing, tmp_path, recipe_of(policy="flag"), RECIPE.asit, 9, 1)
    answer = ranks.wait()[0][0]
    assert answer["status"] == "finished"
    said = [line for line in ranks.log().splitlines() if line.startswith("warning: step")]
    assert len(said) == 1
    assert said[0].startswith("warning: step 14: for 4 steps teacher/spread was 0.00% of its most")
    assert answer["state"].collapsed_in_a_row == 10
    lines = dict(answer["lines"])
    assert lines[10]["teacher/spread"] > 1e-3 > 1e-6 > lines[11]["teacher/spread"]


@pytest.mark.parametrize(
    ("size", "engine"),
    [(2, 1), pytest.param(2, 3, marks=pytest.mark.long), pytest.param(1, "oss", marks=pytest.mark.long)],
)
def test_going_back_to_before_a_collapse_replays(tmp_path: Path, size: int, engine: int | str) -> None:
    """What comes of it is, bit for bit, a run that was told from the beginning to leave these steps out."""
    recipe = recipe_of(engine)
    ends = run(size, collapsing, tmp_path / "run", recipe, RECIPE.asit, 9, 2)
    # Struck after step 9 (from 0), it shows from step 10 on and is judged with step 13.
    assert json.loads((tmp_path / "run" / "left_out.json").read_text()) == [[8, 10]]
    told = tmp_path / "told"
    told.mkdir(mode=0o700)
    (told / "left_out.json").write_text("[[8, 10]]")
    expected = run(size, collapsing, told, recipe, RECIPE.asit, 9, 1)
    for (first, second), (only,) in zip(ends, expected, strict=True):
        assert [end["status"] for end in (first, second, only)] == ["preempted", "finished", "finished"]
        assert second["state"].step == only["state"].step == 20
        assert second["state"].collapsed_in_a_row == 0
        known = dict(only["lines"])
        for step, values in second["lines"]:
            assert values.get("loss") == known[step].get("loss"), step
            assert values.get("teacher/spread") == known[step].get("teacher/spread"), step
        for part in ("weights", "extra"):
            for name, value in second[part].items():
                assert value.tobytes() == only[part][name].tobytes(), name


def test_without_a_checkpoint_from_before_it_there_is_no_going_back(tmp_path: Path) -> None:
    end = run(1, collapsing, tmp_path, recipe_of(keep=1, collapse_steps=6), RECIPE.asit, 9, 1)[0][0]
    assert end.startswith("Step 16: for 6 steps teacher/spread was")
    assert "That began with step 11, and the oldest checkpoint is of step 14: there is nothing to go back to" in end
    assert not (tmp_path / "left_out.json").exists()
