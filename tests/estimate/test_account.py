"""The account of whole steps: against torch's own count of operations and memory."""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gamut.commands import ROOT
from gamut.estimate.forecast import forecast
from gamut.estimate.rates import Rates, of_sheet
from gamut.estimate.step import Account, account, objective_of
from gamut.estimate.work import work_of
from gamut.plan.balance import idle
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe
from gamut.train.objective import Moment

SMALL = ("step.packs=1", "step.clips=2", "loader.packs_per_forward=1")
RECIPES = {
    "asit": ("pretrain", "asit_tiny", SMALL),
    "elastic": ("finetune", "elastic_tiny", ()),
    "ast": ("finetune", "ast_tiny", ("step.packs=4", "loader.packs_per_forward=4")),
}


def recipe_of(name: str) -> Recipe:
    stage, recipe, overrides = RECIPES[name]
    return load_recipe(stage, recipe, (*overrides, "data=nowhere"))


@functools.cache
def on_the_cpu(name: str) -> Account:
    recipe = recipe_of(name)
    return account(recipe, work_of(recipe, 1), "cpu")


@pytest.mark.parametrize("name", ["asit", "elastic", pytest.param("ast", marks=pytest.mark.long)])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    recipe, mine = recipe_of(name), on_the_cpu(name)
    work = mine.work
    objective = objective_of(recipe, work, torch.device("cpu"))
    objective.model.train()
    at = Moment(0, 0, 0, 0.5)
    with FlopCounterMode(display=False) as counter:
        prepared = objective.prepare(work.batch(), at)
        totals = dict(zip(objective.count_names, prepared.counts.tolist()))
        share, _ = objective.loss(objective.model, prepared, totals, at)
        share.backward()
    calls = mine.phase("prepare", "micro")
    assert sum(call.flops for call in calls if call.kind == "matmul") == counter.get_total_flops()
    # torch's counter leaves the CPU's attention out: q k and p v in the forward, five products in the backward.
    model, teachers = recipe.model, bool(objective.copies())
    tokens = [size // 16 * 8 + (model.pooling == "cls") for size in work.batch().sizes]
    squares = sum(length**2 for length in tokens) * model.depth
    if model.pooling != "attention":  # whose one query a clip is attention, too
        attention = sum(call.flops for call in calls if call.kind == "attention")
        assert attention == (4 + 10 + 4 * teachers) * squares * model.dim
    assert not mine.guessed


@pytest.mark.parametrize("name", ["asit", *(pytest.param(name, marks=pytest.mark.long) for name in ("elastic", "ast"))])
def test_a_gpu_that_is_not_there_takes_the_step(name: str) -> None:
    recipe = recipe_of(name)
    mine = account(recipe, work_of(recipe, 2), "cuda")
    assert not mine.guessed
    assert {call.phase for call in mine.calls} == {"prepare", "count", "micro", "update"}
    lines = {call.line for call in mine.calls if call.line not in ("engine", "backward")}
    for line in lines:
        path, _, number = line.partition(":")
        assert int(number) <= len((ROOT / path).read_text().splitlines())
    made = forecast(mine, of_sheet("h100"), 1)
    assert made.clips > 0
    assert 0 < made.mfu < 0.6
    assert made.seconds["communication"] > 0
    assert sum(call.wait for call in mine.phase("micro")) == 0
    update = [call.name for call in mine.phase("update")]
    assert {"_foreach_sqrt", "all-reduce", "all-gather"} <= {*update}  # Adam's, and what ZeRO-1 sends
    assert ("_foreach_lerp_" in {call.name for call in mine.phase("update") if "pretrain/" in call.line}) == (
        name == "asit"
    )


def test_memory_is_what_torch_allocates(tmp_path: Path) -> None:
    """Within 10 % of the most that torch's allocator hands out in a step of the real engine (ZeRO-1)."""
    words = [",".join([f"{stage}/{name}", *more, "data=nowhere"]) for stage, name, more in RECIPES.values()]
    line = [sys.executable, str(ROOT / "tests/estimate/measured.py"), "0", *words]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [one["peak"] for one in json.loads(done.stdout.splitlines()[-1])]
    for name, peak in zip(RECIPES, measured, strict=True):
        assert on_the_cpu(name).peak == pytest.approx(peak, rel=0.10), name


@pytest.mark.long
def test_time_is_what_a_step_takes(tmp_path: Path) -> None:
    """Within 15 % of real steps on this CPU, one thread, with rates that are measured among them: the median over
    three recipes and four rounds of each. (Single rounds were seen 30 % off where others used the machine.)"""
    words = [
        ",".join([f"{stage}/{name}", *more, "run.threads=1", "data=nowhere"]) for stage, name, more in RECIPES.values()
    ]
    line = [sys.executable, str(ROOT / "tests/estimate/measured.py"), "12", *words]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    ratios = []
    for name, found in zip(RECIPES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        mine = on_the_cpu(name)
        for number, rates in enumerate(found["rates"]):
            seconds = statistics.median(found["seconds"][3 * number : 3 * number + 3])
            ratios.append(forecast(mine, Rates(**rates), 1).step / seconds)
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.15), ratios


def test_ranks_without_a_pack_are_idle() -> None:
    assert idle(32, 64) == 0.5
    assert idle(12, 64) == pytest.approx(0.8125)
    assert idle(33, 32) == pytest.approx(1 - 33 / 64)
    assert idle(64, 16) == 0.0


@pytest.mark.parametrize("name", ["esc10", pytest.param("asit_b_published_v1", marks=pytest.mark.long)])
def test_sizes_that_the_host_knows_are_not_shares(name: str) -> None:
    """Neighbours within a pack (KoLeo), and fills from other clips: the sizes of packs are numbers on the host."""
    recipe = load_recipe("pretrain", name, ("data=nowhere", "model.depth=1"))
    mine = account(recipe, work_of(recipe, 1), "cuda")
    assert not mine.guessed
