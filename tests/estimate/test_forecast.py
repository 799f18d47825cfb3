"""Two clocks, and what comes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gamut.errors import RecipeError, RunError
from gamut.estimate import rates
from gamut.estimate.__main__ import main, recipe_of
from gamut.estimate.calls import BESIDE, Call
from gamut.estimate.forecast import forecast, run
from gamut.estimate.rates import Rates, of_sheet
from gamut.estimate.step import account
from gamut.estimate.work import work_of

# Round numbers: a call takes the host 10 s, a launch the device 1 s at least, a byte and an operation a second.
ROUND = replace(of_sheet("h100"), half=1.0, single=1.0, bytes=1.0, call=10.0, backward=10.0, launch=1.0, wait=3.0)


def memory(seconds: float, wait: bool = False) -> Call:
    return Call("add", "memory", 0.0, seconds, 1, True, "a:1", "micro", wait=wait)


def product(seconds: float) -> Call:
    return Call("mm", "matmul", seconds, 1.0, 1, True, "a:2", "micro")


def test_short_calls_leave_the_device_waiting_for_launches() -> None:
    spent = run([memory(2.0), memory(2.0), memory(2.0)], ROUND, 1.0)
    assert spent["memory"] == 6.0
    assert spent["launches"] == 10.0 + 8.0 + 8.0


def test_long_calls_hide_the_launches() -> None:
    spent = run([product(30.0), memory(20.0), product(5.0)], ROUND, 1.0)
    assert (spent["matmul"], spent["memory"]) == (35.0, 20.0)
    assert spent["launches"] == 10.0  # of the first; the others were issued in time


def test_after_a_wait_the_host_begins_anew() -> None:
    spent = run([product(30.0), memory(20.0, wait=True), product(5.0)], ROUND, 1.0)
    assert spent["waits"] == 3.0 + 10.0


def test_a_share_of_the_work_does_not_shorten_launches() -> None:
    spent = run([memory(20.0), memory(20.0)], ROUND, 0.1)
    assert spent["memory"] == 4.0
    assert spent["launches"] == 10.0 + 8.0


def test_measured_rates_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(replace(ROUND, calls={"gelu": 2.0}).to_json())
    assert rates.read(path) == replace(ROUND, calls={"gelu": 2.0})
    path.write_text("{}")
    with pytest.raises(RunError, match="--measure"):
        rates.read(path)


def test_sheets_have_a_source() -> None:
    for name in rates.SHEETS:
        found: Rates = of_sheet(name)
        assert found.source
        assert found.half < found.peak


def test_a_recipe_is_found_in_its_stage() -> None:
    assert recipe_of(["asit_tiny"]).stage == "pretrain"
    assert recipe_of(["finetune", "esc10", "epochs=3"]).epochs == 3
    with pytest.raises(RecipeError, match="pretrain and finetune"):
        recipe_of(["esc10"])


def test_the_command_compares(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # no word of a table is wrapped
    words = ["asit_tiny", "data=nowhere", "step.packs=2", "--gpus", "2", "--detail", "--price", "3"]
    assert main([*words, "--compare", "loader.packs_per_forward=2"]) == 0
    told = capsys.readouterr().out
    assert told.count("the 20 dearest lines") == 2
    for said in (
        "activations",
        "clips/s a GPU",
        "clips/s a GPU in evaluation",
        "cost at 3",
        "This is an estimate",
        "stand-in clips",
    ):
        assert said in told


@pytest.mark.long
def test_gradients_are_sent_beside_the_backward_where_the_engine_does_so() -> None:
    """What is left of them is the last bucket at least, and as much as the backward is too short for."""
    line = ["asit_tiny", "data=nowhere", "step.packs=16", "step.clips=8", "precision=bf16", "model.depth=12"]
    line += ["model.dim=768", "model.heads=12", "loader.packs_per_forward=1"]
    beside, after = (recipe_of([*line, f"compute.activations={how}"]) for how in ("keep", "recompute"))
    mine, theirs = (account(recipe, work_of(recipe, 16), "cuda") for recipe in (beside, after))
    rates_ = of_sheet("h100")
    sent = [forecast(one, rates_, 2).seconds["communication"] for one in (mine, theirs)]
    assert sent[0] < sent[1]
    endless = replace(rates_, half=rates_.half / 1e6)
    least = forecast(mine, endless, 2).seconds["communication"]
    buckets = [call for call in mine.calls if call.name == BESIDE]
    assert len(buckets) > 5
    assert buckets[-1].bytes < 32e6 + 1
    assert 0 < least < 0.5 * sent[1]
    assert least < sent[0] <= forecast(mine, replace(rates_, half=rates_.half * 1e6), 2).seconds["communication"]


@pytest.mark.long
def test_a_gpu_prepares_the_next_step_beside_the_backward() -> None:
    """That hides what it waits for, and takes memory of its own."""
    recipe = recipe_of(["asit_tiny", "data=nowhere", "step.packs=2", "step.clips=8", "loader.packs_per_forward=1"])
    work = work_of(recipe, 1)
    mine = account(recipe, work, "cuda")
    assert mine.beside > mine.waiting > 0
    after = replace(mine, beside=0)
    rates_ = of_sheet("h100")
    assert forecast(mine, rates_, 1).step < forecast(after, rates_, 1).step
    assert mine.held["prepared"] == 2 * mine.waiting + mine.beside
    assert after.held["prepared"] == mine.waiting
    assert account(recipe, work, "cpu").beside == 0
