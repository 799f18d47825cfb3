"""What a run tells of its own speed: shares of a step's time, memory, MFU, and a trace of a few steps."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run
from toy import teach, toy_epoch, toy_recipe

from gamut.errors import RecipeError
from gamut.recipe.load import load_recipe
from gamut.train.meter import Meter
from gamut.train.spans import Spans, Spent
from gamut.train.world import World

SHARES = ("prepare_share", "train_share", "communicate_share", "update_share")


class Span(Spans):
    """Of a device that is through with it once it is told so."""

    done = False

    @property
    def over(self) -> bool:
        return self.done


def test_shares_are_of_the_steps_that_the_device_is_through_with() -> None:
    spent, device = Spent(), torch.device("cpu")
    first, second = Span(device), Span(device)
    for spans in (first, second):
        spans._marks = [("prepare", 0.0), ("train", 1.0), ("prepare", 3.0), ("", 4.0)]
        spent.add(8.0, spans)
    assert spent.read() == {}
    first.done = True
    assert spent.read() == {"prepare_share": 0.25, "train_share": 0.25}
    assert spent.read() == {}
    second.done = True
    assert spent.read() == {"prepare_share": 0.25, "train_share": 0.25}


def test_rates_of_a_gpu_are_a_rank_s_share() -> None:
    epoch = toy_epoch(0)
    meter = Meter(epoch, torch.device("cpu"), ranks=4, peak_seconds=0.02)
    meter.add(0, 2.0, 0.5)
    tokens = int(epoch.pack_tokens[: epoch.packs].sum())
    values = meter.read()
    assert values["tokens_per_second"] == pytest.approx(tokens / 2.0)
    assert values["tokens_per_second_per_gpu"] == pytest.approx(tokens / 8.0)
    assert values["mfu"] == pytest.approx(tokens / 8.0 * 0.02)
    assert values["memory_gb"] > 0.05  # torch alone is more
    assert "mfu" not in Meter(epoch, torch.device("cpu"), 4).read()


def traced(world: World, folder: Path) -> tuple[dict, dict]:
    """The toy run with a trace of steps 3 to 5; an attempt ends within."""
    recipe = toy_recipe()
    recipe = replace(recipe, track=replace(recipe.track, trace_steps=[3, 5]))
    return teach(world, folder, recipe, stop_after=4), teach(world, folder, recipe)


def test_a_trace_of_a_few_steps(tmp_path: Path) -> None:
    ((first, rest),) = run(1, traced, tmp_path)
    assert (first["status"], rest["status"]) == ("preempted", "finished")
    assert sorted(path.name for path in (tmp_path / "trace").iterdir()) == [
        "0000003-0000005.json.gz",
        "0000003-0000005.txt",
    ]
    events = json.loads(gzip.decompress((tmp_path / "trace" / "0000003-0000005.json.gz").read_bytes()))["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::addmm"]
    assert products
    assert "aten::addmm" in (tmp_path / "trace" / "0000003-0000005.txt").read_text()
    for step, values in first["lines"] + rest["lines"]:
        assert set(SHARES) <= set(values), step
        assert 0.0 < sum(values[share] for share in SHARES) <= 1.0


def test_a_trace_has_a_first_and_a_last_step() -> None:
    assert load_recipe("pretrain", "demo", ("track.trace_steps=[100,110]",)).track.trace_steps == [100, 110]
    for wrong in ("[5]", "[7,5]", "[0,5]", "[1,2,3]"):
        with pytest.raises(RecipeError, match=r"track\.trace_steps"):
            load_recipe("pretrain", "demo", (f"track.trace_steps={wrong}",))
