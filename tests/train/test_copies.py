"""Checkpoints are copied to a second place beside the training, and a run whose own are gone goes on from there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cases import copied_slowly, refused, staged, stopped
from ranks import Ranks, run
from test_resume import assert_same_end
from toy import teach

from gamut.errors import RecipeError
from gamut.recipe.check import check
from gamut.recipe.schema import Recipe
from gamut.track.checkpoints import Checkpoints, verify


def copying(folder: Path, **changes: object) -> Recipe:
    """The toy recipe of ZeRO-1, whose run is called `run` and has its copies below `folder`."""
    recipe = staged(1, **changes)
    checkpoint = replace(recipe.checkpoint, copy_to=str(folder))
    return replace(recipe, checkpoint=checkpoint, run=replace(recipe.run, name="run"))


def copies(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "run" / "checkpoints")


@pytest.mark.parametrize(
    "lost", ["a bit of each", *(pytest.param(one, marks=pytest.mark.long) for one in ("the folder", "the checkpoints"))]
)
def test_a_run_whose_checkpoints_are_lost_goes_on_from_their_copies(tmp_path: Path, lost: str) -> None:
    recipe = copying(tmp_path / "second")
    expected = run(2, teach, tmp_path / "reference", staged(1))
    folder = tmp_path / "run"
    run(2, stopped, folder, recipe, 9)
    run(2, stopped, folder, recipe, 13)  # copies what the one before had no time for
    own, second = Checkpoints(folder / "checkpoints"), copies(tmp_path / "second")
    assert second.saved()
    assert second.newest() == second.saved()[0]
    assert all(verify(path) for path in second.saved())
    if lost == "the folder":
        shutil.rmtree(folder)
    elif lost == "the checkpoints":
        shutil.rmtree(own.folder)
    else:
        for path in own.saved():
            file = path / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    ranks = Ranks(2, teach, folder, recipe)
    answers = ranks.wait()
    assert "is brought back from" in ranks.log()
    assert_same_end(folder, answers, tmp_path / "reference", expected, lost)
    assert second.newest().name == own.newest().name
    assert verify(second.newest()) == verify(own.newest())


def test_no_step_waits_for_a_second_place_that_is_slow(tmp_path: Path) -> None:
    """While the first copy hangs, the run takes all its steps; those between are left out, the newest is there."""
    answer = run(1, copied_slowly, tmp_path / "run", copying(tmp_path / "second"), tmp_path / "second")[0]
    assert answer["copies while it trained"] == []
    saved = [path.name for path in copies(tmp_path / "second").saved()]
    assert saved[0] == "step-00000020"
    assert len(saved) < len(answer["saved"])


def test_a_second_place_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "second").write_text("a file")
    ranks = Ranks(1, teach, tmp_path / "run", copying(tmp_path / "second"))
    assert ranks.wait()[0]["status"] == "finished"
    assert "step-00000020 is not copied to" in ranks.log()


def test_damage_in_both_places_is_no_fresh_start(tmp_path: Path) -> None:
    recipe = copying(tmp_path / "second")
    run(1, teach, tmp_path / "run", recipe)
    for place in (Checkpoints(tmp_path / "run" / "checkpoints"), copies(tmp_path / "second")):
        for path in place.saved():
            (path / "manifest.json").write_text("{}")
    kind, said = run(1, refused, tmp_path / "run", recipe)[0]
    assert kind == "CheckpointError"
    assert str(tmp_path / "run") in said
    assert str(tmp_path / "second") in said


def test_the_second_place_is_not_the_first(tmp_path: Path) -> None:
    recipe = copying(tmp_path)
    with pytest.raises(RecipeError, match="the folder of the runs themselves"):
        check(replace(recipe, run=replace(recipe.run, folder=str(tmp_path))))
