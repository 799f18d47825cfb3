"""A step that is loaded and prepared while the one before is trained: the numbers are those of one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import attempts, holed, poisoned, spiking, staged, teach_short
from ranks import run
from toy import teach, toy_recipe

from gamut.recipe import schema
from gamut.train import loop
from gamut.train.early import Steps, Stream, tensors_in
from gamut.train.objective import Moment
from gamut.train.spans import Spans
from gamut.train.step import Asks, Ready
from gamut.train.world import World

TIMES = ("_per_second", "_per_gpu", "_share", "_per_step", "memory_gb")


def early(world: World, folder: Path, case: Callable[..., Any], *arguments: Any) -> Any:
    """What the ranks do in `case`, with every step but an epoch's first prepared during the one before."""
    loop.stream_of = Stream
    return case(world, folder, *arguments)


def numbers(answer: dict) -> list[tuple[int, dict[str, float]]]:
    return [
        (step, {name: value for name, value in values.items() if not name.endswith(TIMES)})
        for step, values in answer["lines"]
    ]


def assert_same(found: dict, expected: dict, lines: bool = True) -> None:
    for what in ("weights", "extra"):
        for name, value in expected[what].items():
            assert np.array_equal(found[what][name], value), name
    assert found["state"] == expected["state"]
    assert found["status"] == expected["status"]
    if lines:
        assert numbers(found) == numbers(expected)


def back() -> schema.Recipe:
    checkpoint = schema.Checkpoint(every_epochs=0.4, every_minutes=1e9)
    return staged(1, epochs=6, guard=schema.Guard(policy="back", leave_out=3), checkpoint=checkpoint)


CASES: dict[str, tuple[Callable[..., Any], tuple]] = {
    "undisturbed": (teach, (toy_recipe(),)),
    "epochs of one step": (teach_short, (toy_recipe(),)),
    "stage 3": (teach, (staged(3),)),
    "steps that are not finite": (poisoned, (toy_recipe(), "loss", [2, 3, 9])),
    "holes": (holed, (toy_recipe(), [3, 8])),
    "a spike, and steps that are left out": (spiking, (back(), [22], 2)),
}


SHORT = ("stage 3", "a spike, and steps that are left out")


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_the_numbers_are_the_same(tmp_path: Path, name: str) -> None:
    case, arguments = CASES[name]
    expected = run(2, case, tmp_path / "later", *arguments)
    found = run(2, early, tmp_path / "early", case, *arguments)
    for mine, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, list) and theirs and isinstance(theirs[0], dict):
            for one, other in zip(mine, theirs, strict=True):
                assert_same(one, other)
        elif isinstance(theirs, dict):
            assert_same(mine, theirs)
        else:
            assert mine == theirs


def test_a_step_that_is_prepared_and_not_taken_leaves_no_trace(tmp_path: Path) -> None:
    """Attempts that end at any step, and go on."""
    recipe = toy_recipe()
    expected = run(2, teach, tmp_path / "whole", recipe)
    for (answers, ends), theirs in zip(run(2, early, tmp_path / "early", attempts, recipe), expected, strict=True):
        assert [answer["status"] for answer in answers[:3]] == ["preempted"] * 3
        assert answers[-1]["status"] == "finished"
        assert sorted(set(ends)) == [0, 1, 2, 3]
        assert_same(answers[-1], theirs, lines=False)
        of_all = {step: values for answer in answers for step, values in numbers(answer)}
        for step, values in numbers(theirs):
            kept = {name: value for name, value in of_all[step].items() if name in values}
            assert kept == {name: value for name, value in values.items() if name in kept}


def test_a_step_is_prepared_early_unless_the_ranks_end_or_leave_it_out() -> None:
    done: list[int] = []

    def prepare(batches: list, at: Moment, agreed: Asks) -> Ready:
        done.append(at.step)
        return Ready([], torch.zeros(1), Spans(torch.device("cpu")))

    def steps() -> Steps:
        done.clear()
        loader = [(number, []) for number in range(4)]
        moment = lambda number: Moment(0, 10 + number, number, 0.0)  # noqa: E731
        return Steps(loader, moment, prepare, lambda step: step == 12, Stream(torch.device("cpu")))

    walk, taken = steps(), []
    while (coming := walk.take()) is not None:
        taken.append((coming.number, coming.ready is not None))
        walk.backward_begins()
        walk.backward_runs(Asks())
    assert taken == [(0, False), (1, True), (2, False), (3, True)]
    assert done == [11, 13]
    walk = steps()
    walk.take()
    walk.backward_runs(Asks(stop=True))
    assert done == []
    assert walk.take() is not None


@dataclass
class Inner:
    some: torch.Tensor
    more: dict[str, Any]


def test_every_tensor_that_was_prepared_is_found() -> None:
    a, b, c, d = (torch.zeros(1) for _ in range(4))
    ring: list[Any] = [a]
    ring.append(ring)
    value = (Inner(b, {"list": [c, None, 3, "text"]}), ring, replace(Inner(d, {}), more={"again": a}))
    found = list(tensors_in(value, set()))
    assert {id(one) for one in found} == {id(one) for one in (a, b, c, d)}
    assert len(found) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_what_is_prepared_beside_is_what_is_prepared_alone() -> None:
    device = torch.device("cuda", 0)
    stream, spans = Stream(device), Spans(device)
    source = torch.arange(1 << 22, dtype=torch.float32).pin_memory()

    def prepare() -> Ready:
        spans.begin("prepare")
        moved = source.to(device, non_blocking=True).sin()
        spans.end()
        return Ready([moved], moved.double().sum()[None], spans)  # type: ignore[list-item]

    expected = source.to(device).sin()
    for _ in range(20):
        stream.mark()
        busy = torch.randn(2048, 2048, device=device)
        for _ in range(20):
            busy = busy @ busy / 50.0
        ready = stream.run(prepare)
        assert ready.done is not None
        ready.done.synchronize()
        (moved,) = ready.prepared
        assert torch.equal(moved, expected)  # type: ignore[arg-type]
        assert ready.total.device.type == "cpu"
        assert ready.total.item() == expected.double().sum().item()
