"""Bad numbers, bad clips, signals, hangs, a second writer: what each must lead to."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cases import ended_while_writing, hanging, holding, holed, poisoned, signalled, slow, staged, wanting, without
from ranks import Ranks, run
from toy import teach, toy_recipe

from gamut.recipe import schema
from gamut.track.checkpoints import Checkpoints

RARELY = schema.Checkpoint(every_epochs=0.0, every_minutes=1e9)


@pytest.mark.parametrize(
    ("size", "stage", "precision", "what"),
    [
        pytest.param(2, 0, "fp32", "loss", marks=pytest.mark.long),
        (2, 1, "fp32", "gradient"),
        pytest.param(2, 2, "fp32", "loss", marks=pytest.mark.long),
        pytest.param(1, 1, "bf16", "gradient", marks=pytest.mark.long),
        (2, 2, "bf16", "loss"),
        (2, 3, "fp32", "gradient"),
        pytest.param(2, "oss", "fp32", "loss", marks=pytest.mark.long),
        pytest.param(2, 3, "bf16", "loss", marks=pytest.mark.long),
        pytest.param(1, "oss", "fp32", "gradient", marks=pytest.mark.long),
        pytest.param(2, 0, "fp32", "gradient", marks=pytest.mark.long),
        pytest.param(2, 1, "bf16", "loss", marks=pytest.mark.long),
    ],
)
def test_a_bad_step_touches_nothing(tmp_path: Path, size: int, stage: int | str, precision: str, what: str) -> None:
    """Not at that step, nor later: the run ends, bit for bit, as one in which that step was never tried."""
    recipe = staged(stage, precision=precision, checkpoint=RARELY)
    bad = [3, 8, 9]
    answers = run(size, poisoned, tmp_path / "bad", recipe, what, bad)
    expected = run(size, without, tmp_path / "without", recipe, bad)
    for mine, theirs in zip(answers, expected, strict=True):
        for step in bad:
            assert mine["before"][step] == mine["before"][step + 1], step
        assert mine["before"][4] != mine["before"][5]
        assert mine["state"] == theirs["state"]
        assert mine["state"].skipped == 3
        for part in ("weights", "extra"):
            for name, value in mine[part].items():
                assert value.tobytes() == theirs[part][name].tobytes(), name
    lines = dict(answers[0]["lines"])
    assert "loss" not in lines[4]
    assert lines[4]["skipped_steps"] == 1
    assert "loss" in lines[5]


def test_the_fifth_bad_step_in_a_row_stops_the_run_and_names_its_clips(tmp_path: Path) -> None:
    answers = run(2, poisoned, tmp_path, toy_recipe(), "loss", [2, 3, 4, 5, 6, 7])
    assert answers[0] == answers[1]
    assert "Step 6 is the 5th in a row" in answers[0]
    assert "loss is not finite" in answers[0]
    assert "clip" in answers[0].split("The clips of this step:")[1]
    # The ranks went down at a step boundary: the last checkpoint is there, and it does not forget the count.
    assert run(2, poisoned, tmp_path, toy_recipe(), "loss", [6])[0].startswith("Step 6 is the 5th in a row")


def test_four_bad_steps_in_a_row_do_not_stop_it(tmp_path: Path) -> None:
    answer = run(1, poisoned, tmp_path, toy_recipe(), "gradient", [2, 3, 4, 5, 7, 8, 9, 10])[0]
    assert answer["state"].skipped == 8
    assert answer["status"] == "finished"


def test_holes_are_counted_and_too_many_stop_the_run(tmp_path: Path) -> None:
    answers = run(2, holed, tmp_path / "few", toy_recipe(), [3, 7, 20])
    assert answers[0]["state"].holes == 3 * 4  # in each of four epochs
    assert answers[0]["state"].holes_this_epoch == 0
    assert max(values["holes"] for _, values in answers[0]["lines"]) == 12
    said = run(2, holed, tmp_path / "many", toy_recipe(), list(range(0, 34, 3)))
    assert said[0] == said[1]
    assert int(said[0].split()[0]) in (7, 8)  # of 34, at the end of the step in which the limit of 6.8 was passed
    assert "(truncated)" in said[0]
    assert "loader.max_holes=0.2" in said[0]


@pytest.mark.parametrize(
    ("how", "said", "name", "left"),
    [
        ("holes", "loader.max_holes=0.2", "step-00000002", ["step-00000002"]),
        ("divergence", "no longer have the same", "step-00000006", ["step-00000004"]),
    ],
)
def test_what_is_being_written_when_a_run_ends_is_published_unless_ranks_diverged(
    tmp_path: Path, how: str, said: str, name: str, left: list[str]
) -> None:
    """The seventh step is compared, and found apart; what was saved after the sixth was not compared."""
    recipe = toy_recipe(guard=schema.Guard(divergence_steps=7))
    recipe = replace(recipe, checkpoint=replace(recipe.checkpoint, keep=1))
    answers = run(2, ended_while_writing, tmp_path, recipe, name, how)
    assert all(said in answer for answer in answers)
    assert [path.name for path in Checkpoints(tmp_path / "checkpoints").saved()] == left
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"{left[0]}\n"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_on_one_rank_saves_on_all(tmp_path: Path, number: int) -> None:
    recipe = toy_recipe(checkpoint=RARELY)
    answers = run(2, signalled, tmp_path, recipe, 6, 1, number)
    assert [answer["status"] for answer in answers] == ["preempted"] * 2
    step = answers[0]["state"].step
    assert step in (7, 8)  # asked before or after the ranks had agreed on the step in which it came
    assert answers[0]["saved"] == [step]
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"step-{step:08d}\n"
    again = run(2, teach, tmp_path, recipe)
    assert again[0]["status"] == "finished"
    assert again[0]["lines"][0][0] == step + 1


def test_a_run_folder_has_one_writer(tmp_path: Path) -> None:
    until, folder = tmp_path / "enough", tmp_path / "run"
    holder = Ranks(1, holding, folder, until)
    while not (folder / "held").exists():
        time.sleep(0.02)
        assert holder.processes[0].is_alive(), holder.log()
    refused = run(2, wanting, folder)
    for rank, said in enumerate(refused):
        assert f"process {holder.processes[0].pid} on " in said, rank
        assert str(folder) in said
    until.touch()
    assert holder.wait() == ["held"]
    assert run(2, wanting, folder) == ["held"] * 2
    assert os.stat(folder).st_mode & 0o077 == 0


def test_a_killed_holder_leaves_the_folder_free(tmp_path: Path) -> None:
    holder = Ranks(1, holding, tmp_path / "run", tmp_path / "never")
    while not (tmp_path / "run" / "held").exists():
        time.sleep(0.02)
    holder.processes[0].kill()
    holder.wait()
    assert run(1, wanting, tmp_path / "run") == ["held"]


@pytest.mark.parametrize(
    ("size", "where", "said"),
    [
        (2, "step", "step 3"),
        (2, "end", "the end of epoch 1"),
        (1, "copying", "copying step-00000002"),
        (2, "writing", "waiting for step-00000002 to be written"),
        pytest.param(1, "planning", "planning epoch 1", marks=pytest.mark.long),
        pytest.param(1, "publishing", "waiting for step-00000002 to be written", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_hangs_shows_its_stacks_and_all_end(tmp_path: Path, size: int, where: str, said: str) -> None:
    recipe = replace(toy_recipe(), run=schema.Run(threads=1, timeout_seconds=3.0))
    last = 0 if where == "writing" else size - 1  # it writes that file
    ranks = Ranks(size, hanging, tmp_path, recipe, last, where, timeout_seconds=8.0)
    answers = ranks.wait(40.0)
    assert not any(isinstance(answer, dict) for answer in answers)
    log = ranks.log()
    assert f"Timeout: nothing has moved for 3 s in rank {last}, process " in log
    assert f"which is at: {said}." in log
    assert "tests/train/cases.py" in log  # the line it hangs in


def test_a_disk_that_is_slow_is_not_one_that_hangs(tmp_path: Path) -> None:
    recipe = replace(toy_recipe(epochs=1), run=schema.Run(threads=1, timeout_seconds=3.0))
    ranks = Ranks(2, slow, tmp_path, recipe, 1.0, timeout_seconds=60.0)
    assert [answer["saved"] for answer in ranks.wait()] == [[2, 4, 5]] * 2
