"""A teacher that has nothing to teach any more is seen in the step in which it says so."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.asit import Asit
from pretrain.centres import collapse
from tests.asit import NOW, objective, whole_step
from tests.sounds import sounds

CLIPS = [sounds(range(6)), sounds([]), sounds(range(6, 9))]


def look(task: Asit) -> str:
    """What is said of one step of three micro-batches, which is then applied."""
    _, values, _ = whole_step(task, CLIPS)
    said = task.collapsed(values)
    task.after_step(NOW)
    return said


@torch.no_grad()
def say_the_same(task: Asit) -> torch.Tensor:
    """Have the teacher give one output for all tokens; returns that feature [bottleneck]."""
    last = task.teacher.projection.mlp[-1]
    last.weight.zero_()
    last.bias.copy_(torch.randn(len(last.bias), generator=torch.Generator().manual_seed(1)))
    return torch.nn.functional.normalize(last.bias, dim=0)


def test_a_fresh_network_has_not_collapsed() -> None:
    for losses in ({}, {"weight_global": 0.0}, {"weight_local": 0.0}, {"weight_local": 0.0, "weight_global": 0.0}):
        task = objective(**losses)
        assert [look(task) for _ in range(3)] == [""] * 3


@pytest.mark.parametrize("off", ["weight_local", "weight_global"])
def test_the_same_for_all_is_seen_at_once_and_even_once_the_centre_has_followed(off: str) -> None:
    """Only the spread shows it at first: the entropy is as it was."""
    name = "spread_data" if off == "weight_global" else "spread"
    task = objective(**{off: 0.0}, centre_momentum=0.5, teacher_momentum=1.0)
    say_the_same(task)
    said = [look(task) for _ in range(12)]
    assert said[0].startswith(f"teacher/{name} was 0.00% of its most: the teacher says the same of all")
    assert said[-1].startswith(f"teacher/{name.replace('spread', 'entropy')} was ")
    assert said[-1].endswith("of its most: the teacher finds every prototype as likely")
    assert all(said)


def test_everything_to_one_prototype() -> None:
    task = objective(teacher_momentum=1.0)
    feature = say_the_same(task)
    with torch.no_grad():
        task.teacher.projection.last_layer.weight.copy_(-feature.expand(24, -1))
        task.teacher.projection.last_layer.weight[5] = feature
    said = look(task)
    assert said == "teacher/entropy was 0.00% of its most: the teacher gives everything to one prototype"


def test_outputs_that_run_away() -> None:
    task = objective(gain="trained", teacher_momentum=1.0)
    say_the_same(task)
    with torch.no_grad():
        task.teacher.projection.last_layer.gain.fill_(100.0)
    assert "the teacher's outputs run away in one direction" in look(task)


def test_what_is_not_applied_leaves_centres_and_the_next_verdict_as_they_were() -> None:
    task, other = objective(teacher_momentum=1.0), objective(teacher_momentum=1.0)
    for one in (task, other):
        say_the_same(one)
    _, refused, _ = whole_step(task, CLIPS)
    task.skipped_step()
    assert not task.centres.classes.value.any()
    _, again, _ = whole_step(task, CLIPS)
    _, once, _ = whole_step(other, CLIPS)
    assert task.collapsed(again) == other.collapsed(once) != ""
    assert again["teacher/centre_norm"] == once["teacher/centre_norm"] == refused["teacher/centre_norm"] > 0.0


@pytest.mark.parametrize(
    ("values", "spread", "said"),
    [
        ({"teacher/entropy": 0.9998}, 0.9, ""),
        ({"teacher/entropy": 0.99995}, 0.9, "every prototype as likely"),
        ({"teacher/entropy": 0.0011}, 0.9, ""),
        ({"teacher/entropy": 0.0009}, 0.9, "everything to one prototype"),
        ({"teacher/entropy": 0.5}, 0.0011, ""),
        ({"teacher/entropy": 0.5}, 0.0009, "the same of all"),
        ({"teacher/entropy": 0.5, "teacher/centre_norm": 3.9}, 0.9, ""),
        ({"teacher/entropy": 0.5, "teacher/centre_norm": 4.1}, 0.9, "run away"),
        ({"teacher/entropy": 0.5, "teacher/centre_norm": math.nan}, 0.9, "run away"),
        ({}, 1.0, ""),
    ],
)
def test_bounds(values: dict[str, float], spread: float, said: str) -> None:
    """Of 16 prototypes; entropies as shares of log 16."""
    nats = {name: value * (math.log(16) if "entropy" in name else 1.0) for name, value in values.items()}
    nats |= {"teacher/spread_share": spread, "teacher/spread_share_data": spread}
    found = collapse("", 16, nats)
    assert said in found
    assert bool(said) == bool(found)
    assert bool(collapse("_data", 16, nats)) == (spread < 0.001)  # other names
