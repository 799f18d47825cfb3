"""Checkpoints that a run keeps for good, whatever happens to it in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import attempts
from ranks import run
from toy import teach, toy_recipe

from gamut.errors import CheckpointError
from gamut.recipe import schema
from gamut.track.checkpoints import KEPT, Checkpoints, verify
from gamut.train.schedule import is_due

EVERY_SECOND = schema.Checkpoint(every_epochs=0.4, every_minutes=1e9, keep=1, keep_every=2)


def test_due_every_so_many_epochs_and_after_the_last() -> None:
    assert [done for done in range(1, 8) if is_due(done, 7, 3)] == [3, 6, 7]
    assert not any(is_due(done, 7, 0) for done in range(1, 8))
    assert [done for done in range(1, 11) if is_due(done, 10, 4.0)] == [4, 8, 10]
    assert [done for done in range(1, 4) if is_due(done, 3, 100.0)] == [3]
    assert [done for done in range(1, 4) if is_due(done, 3, 0.4)] == [1, 2, 3]
    assert not any(is_due(done, 3, 0.0) for done in range(1, 4))


def test_every_second_epoch_and_the_last_outlive_the_others(tmp_path: Path) -> None:
    run(1, teach, tmp_path, toy_recipe(epochs=3, checkpoint=EVERY_SECOND))
    folder = tmp_path / "checkpoints"
    assert Checkpoints(folder).kept() == {2: folder / "step-00000010", 3: folder / "step-00000015"}
    assert [path.name for path in Checkpoints(folder).saved()] == ["step-00000015", "step-00000010"]
    for path in Checkpoints(folder).saved():
        verify(path)


def test_a_run_that_is_stopped_after_the_last_step_of_an_epoch_keeps_it(tmp_path: Path) -> None:
    """Its checkpoint is there before the epoch has ended, and is the one that is kept."""
    sparse = schema.Checkpoint(every_epochs=0.0, every_minutes=1e9, keep=1, keep_every=2)
    answers, _ = run(1, attempts, tmp_path, toy_recipe(checkpoint=sparse))[0]
    assert 10 in [answer["state"].step for answer in answers]
    folder = tmp_path / "checkpoints"
    assert Checkpoints(folder).kept() == {2: folder / "step-00000010", 4: folder / "step-00000020"}


def test_a_note_without_its_checkpoint_names_none_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "checkpoints").keep("step-00000010", 2)
    assert Checkpoints(tmp_path / "checkpoints").kept() == {}
    assert Checkpoints(tmp_path / "checkpoints").noted() == {"step-00000010": 2}
    (tmp_path / "checkpoints" / KEPT).write_text("{")
    with pytest.raises(CheckpointError, match=r"kept\.json, which says what checkpoints are kept"):
        Checkpoints(tmp_path / "checkpoints").kept()
