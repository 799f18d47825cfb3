"""The run folder: private, counted, and of one recipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gamut.errors import RunError
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import read_resolved
from gamut.recipe.schema import Recipe
from gamut.track import run
from gamut.track.run import RunFolder, git_revision


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("pretrain", "asit_tiny", [f"run.folder={folder}", "run.name=one", *overrides])


def test_private_counted_and_recorded(tmp_path: Path) -> None:
    wanted = recipe(tmp_path / "runs")
    first = RunFolder.open(wanted)
    assert first.path == tmp_path / "runs" / "one" == RunFolder.place(wanted)
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    assert (first.figures.is_dir(), first.logs.is_dir()) == (True, True)
    assert read_resolved(first.path / "recipe.yaml") == wanted
    again = RunFolder.open(wanted)
    assert (first.attempt, again.attempt) == (1, 2)
    assert first.identity == again.identity == RunFolder.last(first.path).identity
    assert RunFolder.last(first.path).attempt == 2


def test_a_run_inside_a_run(tmp_path: Path) -> None:
    inner = recipe(tmp_path, "run.name=outer/fold-1")
    for attempt in (1, 2):
        folder = RunFolder.open(inner)
        assert folder.attempt == attempt
        assert [stat.S_IMODE(p.stat().st_mode) for p in (folder.path, folder.path.parent)] == [0o700, 0o700]
    assert folder.path == tmp_path / "outer" / "fold-1"


def test_the_first_recipe_stays(tmp_path: Path) -> None:
    RunFolder.open(recipe(tmp_path))
    with pytest.raises(RunError, match=r"optim\.lr: 0\.0005 -> 0\.001.*run\.name"):
        RunFolder.open(recipe(tmp_path, "optim.lr=1e-3"))
    before = (tmp_path / "one" / "recipe.yaml").read_bytes()
    assert RunFolder.open(recipe(tmp_path, "loader.workers=0", "checkpoint.keep=9")).attempt == 2
    assert (tmp_path / "one" / "recipe.yaml").read_bytes() == before


def test_damage_is_named(tmp_path: Path) -> None:
    folder = RunFolder.open(recipe(tmp_path))
    (folder.path / "run.json").write_text('{"identity"')
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        RunFolder.open(recipe(tmp_path))
    with pytest.raises(RunError, match="no run at"):
        RunFolder.last(tmp_path / "other")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    path = RunFolder.open(recipe(tmp_path)).path
    os.chown(path, 12345, -1)
    with pytest.raises(RunError, match="belongs to user 12345"):
        RunFolder.open(recipe(tmp_path))


def test_revision_is_that_of_this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_revision() == "unknown" or len(git_revision().removesuffix("+changes")) == 40
    monkeypatch.setattr(run, "IN_CLONE", False)  # as in a package that is installed, even inside of some repository
    monkeypatch.setattr(run, "version", lambda: "1.2.3")
    assert git_revision() == "gamut 1.2.3"
