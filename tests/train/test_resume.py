"""A run that was killed goes on as if it had never been: every later loss and the final state, bit for bit."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import attempts, drawing, killed, partly, refused, staged, stopped, teach_short, timed
from ranks import Ranks, run
from toy import ToyPlans, teach, toy_recipe

from gamut.errors import CheckpointError
from gamut.recipe import schema
from gamut.recipe.resolved import decisive
from gamut.track.checkpoints import Checkpoints, verify
from gamut.train.checkpoint import VERSION, Keeper
from gamut.train.restore import compare


def hashes(folder: Path) -> dict[str, str]:
    """Of every file of the newest checkpoint but the run's own record of it."""
    entries = verify(Checkpoints(folder / "checkpoints").saved()[0])["files"]
    return {name: entry["sha256"] for name, entry in entries.items()}


def assert_same_end(folder: Path, answers: list[dict], reference: Path, expected: list[dict], what: str) -> None:
    for mine, theirs in zip(answers, expected, strict=True):
        assert mine["state"] == theirs["state"], what
        known = dict(theirs["lines"])
        assert mine["lines"], what
        for step, values in mine["lines"]:
            for name in ("loss", "loss/fit", "gradient_norm", "centre", "lr", "weight_decay"):
                assert values[name] == known[step][name], (what, step, name)
        for part in ("weights", "extra"):
            for name, value in mine[part].items():
                assert value.tobytes() == theirs[part][name].tobytes(), (what, name)
    assert hashes(folder) == hashes(reference), what  # weights, optimiser, teacher, centre, random state, counters


@pytest.mark.parametrize(
    ("size", "stage", "precision"),
    [
        (2, 1, "fp32"),
        pytest.param(2, 2, "bf16", marks=pytest.mark.long),
        pytest.param(1, 0, "fp32", marks=pytest.mark.long),
        (2, 3, "fp32"),
        pytest.param(2, "oss", "fp32", marks=pytest.mark.long),
        pytest.param(1, 3, "bf16", marks=pytest.mark.long),
        pytest.param(1, 1, "bf16", marks=pytest.mark.long),
        pytest.param(2, 0, "fp32", marks=pytest.mark.long),
        pytest.param(2, 2, "fp32", marks=pytest.mark.long),
        pytest.param(4, 1, "fp32", marks=pytest.mark.long),
    ],
)
def test_killed_twice_and_never_differs(tmp_path: Path, size: int, stage: int | str, precision: str) -> None:
    recipe = staged(stage, precision=precision)
    expected = run(size, teach, tmp_path / "reference", recipe)
    draw = random.Random()
    first, second = sorted(draw.sample(range(1, 19), 2))
    folder, what = tmp_path / "run", f"killed in steps {first} and {second}"
    for step, when in ((first, "prepare"), (second, draw.choice(["prepare", "after"]))):
        answers = Ranks(size, killed, folder, recipe, step, draw.randrange(size), when).wait()
        assert None in answers, what
        assert not any(isinstance(answer, dict) for answer in answers), what
    answers = run(size, teach, folder, recipe)
    assert_same_end(folder, answers, tmp_path / "reference", expected, what)


def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    expected = run(2, drawing, tmp_path / "reference", toy_recipe(), 0, None)
    first = run(2, drawing, tmp_path / "run", toy_recipe(), 0, 8)
    second = run(2, drawing, tmp_path / "run", toy_recipe(), 99, None)
    for before, after, whole in zip(first, second, expected, strict=True):
        assert 0 < len(after) < 20
        assert before | after == whole
    assert expected[0] != expected[1]


def test_preempted_over_and_over(tmp_path: Path) -> None:
    """Each attempt gets two steps further; the last steps of epochs are among those it is stopped after."""
    recipe = toy_recipe(checkpoint=schema.Checkpoint(every_epochs=0.0, every_minutes=1e9))
    expected = run(1, teach, tmp_path / "reference", recipe)[0]
    answers, ends = run(1, attempts, tmp_path / "run", recipe)[0]
    assert [(a["status"], a["state"].step) for a in answers] == [
        *(("preempted", step) for step in range(2, 21, 2)),
        ("finished", 20),
    ]
    assert ends == [0, 1, 2, 3]  # an epoch whose last step was the last of an attempt has its end in the next attempt
    lines = [line for answer in answers for line in answer["lines"]]
    assert [(step, values["loss"]) for step, values in lines] == [(s, v["loss"]) for s, v in expected["lines"]]
    for epoch in range(4):
        rows = [row for answer in answers for e, _, rows in answer["seen"] if e == epoch for row in rows]
        assert sorted(rows) == list(range(34))
    for name, value in answers[-1]["weights"].items():
        assert value.tobytes() == expected["weights"][name].tobytes()


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    first = run(1, teach, tmp_path, toy_recipe())[0]
    again = run(1, teach, tmp_path, toy_recipe())[0]
    assert again["status"] == "finished"
    assert not again["lines"]
    assert again["state"] == first["state"]


def test_the_last_n_are_kept(tmp_path: Path) -> None:
    run(1, teach, tmp_path, toy_recipe(checkpoint=schema.Checkpoint(every_epochs=0.4, every_minutes=1e9, keep=3)))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step-00000016", "step-00000018", "step-00000020"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000020\n"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    run(1, partly, folder, toy_recipe())
    return folder


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"seed": 5}, "CheckpointError", "seed = 0"),
        ({"optim": replace(toy_recipe().optim, lr=1.0)}, "CheckpointError", "optim.lr = 0.03"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "CheckpointError", "ZeRO stage 1"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "CheckpointError", "deepspeed.zero_optimization.stage=1"),
        ({"engine": "oss"}, "CheckpointError", "set engine=deepspeed"),
        ({"precision": "bf16"}, "CheckpointError", "precision = 'fp32'"),
    ],
)
def test_another_recipe_is_refused(begun: Path, tmp_path: Path, changes: dict, kind: str, words: str) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    answer = run(1, refused, folder, toy_recipe(**changes))[0]
    assert answer[0] == kind
    assert words in answer[1]
    assert before == {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize("there", [{"a": [4, 3]}, {"a": [4, 2], "b": [4]}, {}])
def test_another_model_by_the_same_recipe_is_refused(tmp_path: Path, there: dict[str, list[int]]) -> None:
    """As a plugin makes it whose code has changed since."""
    recipe, layout = toy_recipe(), {"parameters": {"a": [4, 2]}, "engine": "oss"}
    keeper = Keeper(tmp_path, recipe, None, {}, SimpleNamespace(signature=lambda: layout), None)
    record = {"version": VERSION, "plan": {}, "recipe": decisive(recipe)}
    compare(keeper, tmp_path, record | {"engine": layout})
    with pytest.raises(CheckpointError, match=r"is of another model: its parameter [ab] has shape"):
        compare(keeper, tmp_path, record | {"engine": layout | {"parameters": there}})


def test_where_a_remote_set_is_kept_may_change_also_in_checkpoints_that_recorded_it(tmp_path: Path) -> None:
    recipe = toy_recipe(remote=schema.Remote(cache_gb=2.0, tries=9))
    layout = {"parameters": {}, "engine": "oss"}
    keeper = Keeper(tmp_path, recipe, None, {}, SimpleNamespace(signature=lambda: layout), None)
    decided = decisive(toy_recipe()) | {"remote.cache_gb": 50.0, "remote.tries": 5}
    record = {"version": VERSION, "plan": {}, "engine": layout}
    compare(keeper, tmp_path, record | {"recipe": decided})
    with pytest.raises(CheckpointError, match=r"optim\.lr = 1\.0"):
        compare(keeper, tmp_path, record | {"recipe": decided | {"optim.lr": 1.0}})


def test_epochs_of_one_step_are_saved_by_the_clock(tmp_path: Path) -> None:
    recipe = toy_recipe(checkpoint=schema.Checkpoint(every_epochs=0.0, every_minutes=0.0))
    assert run(1, teach_short, tmp_path, recipe)[0] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("how", "saved"),
    [
        pytest.param({"every_epochs": 0.2, "every_minutes": 1e9}, [4, 8, 12, 16, 20], marks=pytest.mark.long),
        pytest.param({"every_epochs": 1.0, "every_minutes": 1e9}, [5, 10, 15, 20], marks=pytest.mark.long),
        pytest.param({"every_epochs": 0.0, "every_minutes": 0.0}, [4, 8, 12, 16, 20], marks=pytest.mark.long),
        ({"every_epochs": 0.2, "every_minutes": 1e9, "least_minutes": 90.0}, [20]),
        ({"every_epochs": 0.2, "every_minutes": 1e9, "keep_every": 2}, [4, 8, 10, 14, 18, 20]),
    ],
)
def test_no_checkpoint_is_sooner_than_the_floor_but_the_last_and_those_that_stay(
    tmp_path: Path, how: dict, saved: list[int]
) -> None:
    """An epoch has five steps, of a minute each. Rank 0's clock decides for all."""
    recipe = toy_recipe(checkpoint=schema.Checkpoint(**{"least_minutes": 3.0} | how))
    assert run(2, timed, tmp_path, recipe) == [saved] * 2


def test_a_run_that_is_told_to_end_does_not_wait_for_the_floor(tmp_path: Path) -> None:
    recipe = toy_recipe(checkpoint=schema.Checkpoint(least_minutes=1e6))
    assert run(1, stopped, tmp_path, recipe, 3)[0]["saved"] == [3]


def test_another_plan_is_refused_by_the_name_of_what_changed(begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    plans = ToyPlans()
    plans.fingerprint = plans.fingerprint | {"index": "another"}
    kind, message = run(1, refused, folder, toy_recipe(), plans)[0]
    assert kind == "PlanError"
    assert "its index was toy and is now another" in message


@pytest.mark.parametrize(
    ("stage", "precision", "worlds"),
    [
        pytest.param(1, "fp32", (2, 1, 2), marks=pytest.mark.long),
        pytest.param(2, "fp32", (1, 3, 1), marks=pytest.mark.long),
        pytest.param(1, "bf16", (2, 1, 2), marks=pytest.mark.long),
        pytest.param(0, "fp32", (2, 1, 2), marks=pytest.mark.long),
        (3, "fp32", (2, 1, 3)),
        ("oss", "fp32", (1, 3, 2)),
        pytest.param(3, "bf16", (3, 1, 2), marks=pytest.mark.long),
        pytest.param(1, "fp32", (4, 2, 1, 4), marks=pytest.mark.long),
        pytest.param(2, "fp32", (4, 2, 1, 4), marks=pytest.mark.long),
        pytest.param(3, "fp32", (4, 2, 1, 4), marks=pytest.mark.long),
        pytest.param("oss", "fp32", (4, 2, 1, 4), marks=pytest.mark.long),
        pytest.param(2, "bf16", (1, 4, 2), marks=pytest.mark.long),
    ],
)
def test_the_number_of_ranks_may_change(
    tmp_path: Path, stage: int | str, precision: str, worlds: tuple[int, ...]
) -> None:
    """The same clips in every step, and the numbers that another split of the work gives."""
    recipe = staged(stage, precision=precision, checkpoint=schema.Checkpoint(every_epochs=0.0, every_minutes=1e9))
    expected = run(1, teach, tmp_path / "reference", recipe)[0]
    lines, seen = [], {}
    for number, size in enumerate(worlds):
        last = number + 1 == len(worlds)
        ranks = Ranks(size, stopped, tmp_path / "run", recipe, None if last else 4 * number + 5)
        answers = ranks.wait()
        assert all(isinstance(answer, dict) for answer in answers), ranks.log()
        assert ("ranks = " in ranks.log()) == (number > 0)
        lines += answers[0]["lines"]
        for answer in answers:
            for epoch, step, rows in answer["seen"]:
                seen.setdefault((epoch, step), []).extend(rows)
    assert {at: sorted(rows) for at, rows in seen.items()} == {(e, s): sorted(rows) for e, s, rows in expected["seen"]}
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    losses = [values["loss"] for _, values in expected["lines"]]
    assert [values["loss"] for _, values in lines] == pytest.approx(losses, rel=tolerance)
    if precision == "fp32":
        peak = max(values["lr"] for _, values in lines)
        for part in ("weights", "extra"):
            for name, value in answers[0][part].items():
                assert np.abs(value - expected[part][name]).max() < 0.02 * peak, name


def test_another_machine_is_warned_of(begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    ranks = Ranks(1, teach, folder, toy_recipe(), threads=2)
    assert ranks.wait()[0]["status"] == "finished"
    assert "threads = 1 and goes on with 2" in ranks.log()
    assert "not bitwise" in ranks.log()
