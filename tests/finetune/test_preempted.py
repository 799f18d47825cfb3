"""Told to end outside of steps: in a round's last evaluation, and between two rounds. Nothing is forgotten, and the run
that goes on ends as one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from finetune import evaluation, scoring
from gamut.numbers import EXIT_PREEMPTED
from gamut.preemption import PREEMPTION
from gamut.train import loop
from gamut.train import world as worlds
from gamut.train.world import World
from tests.train.ranks import run

from .tuning import tune

SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "model.pooling_heads=2", "step.packs=2", "step.tokens=256"]
SMALL += [
    "epochs=2",
    "loader.workers=0",
    "track.mlflow=off",
    "run.threads=1",
    "folds.train=[1,2,3]",
    "folds.test=[[4],[5]]",
]
SMALL += ["front.mean=-5", "front.std=4", "optim.lr=3e-2", "finetune.average_from=1", "finetune.evaluate_epochs=2"]


def tuned(world: World, line: list[str]) -> int:
    """Fine-tune on these ranks, which have met already."""
    worlds.start, worlds.stop = (lambda run: world), (lambda: None)  # type: ignore[assignment]
    return tune(world, line)


def told(world: World, line: list[str], when: str) -> int:
    """Fine-tune; the last rank gets a signal in the first round: in its last step, in the first pack of its last
    evaluation, or once all is scored."""
    whole: Callable[..., Any] = evaluation.evaluate
    loader: Callable[..., Any] = evaluation.Loader
    wishes: Callable[..., Any] = loop._Training._asks
    told: list[int] = []

    def tell() -> None:
        if world.rank == world.size - 1 and not told:
            told.append(os.getpid())
            os.kill(os.getpid(), signal.SIGUSR2)

    def asks(training: Any, epoch: Any, at: Any, *more: Any) -> Any:
        if when == "step" and (at.epoch, at.step_in_epoch) == (1, epoch.steps - 1):
            tell()
        return wishes(training, epoch, at, *more)

    def within(index: Any, plan: Any, **how: Any) -> Any:
        for number, batches in loader(index, plan, **how):
            tell()
            yield number, batches

    def evaluate(*given: Any, **more: Any) -> Any:
        if when == "within":
            return whole(*given, **more | {"make_loader": within})
        scores = whole(*given, **more)
        tell()
        return scores

    loop._Training._asks = asks  # type: ignore[method-assign]
    scoring.evaluate = evaluate  # type: ignore[assignment]
    return tuned(world, line)


@pytest.mark.parametrize(
    "when", ["within", *(pytest.param(when, marks=pytest.mark.long) for when in ("step", "behind"))]
)
def test_a_signal_at_the_end_of_a_round_ends_the_run(small_set: Path, tmp_path: Path, when: str) -> None:
    def line(name: str) -> list[str]:
        return ["elastic_esc10", f"data={small_set}", f"run.folder={tmp_path}", f"run.name={name}", *SMALL]

    assert run(2, told, line("stopped"), when) == [EXIT_PREEMPTED] * 2
    first, second = (tmp_path / "stopped" / f"test-{fold}-seed-0" for fold in (4, 5))
    assert (first / "result.json").exists() == (when == "behind")
    assert not second.exists()
    assert run(2, tuned, line("stopped")) == [0, 0]
    assert run(2, tuned, line("whole")) == [0, 0]
    for fold in (4, 5):
        mine, theirs = (tmp_path / name / f"test-{fold}-seed-0" for name in ("stopped", "whole"))
        results = [json.loads((folder / "result.json").read_text()) for folder in (mine, theirs)]
        assert results[0]["score"] == results[1]["score"]
        for name in ("model.safetensors", "objective.safetensors"):
            newest = [sorted((folder / "checkpoints").glob("step-*"))[-1] / name for folder in (mine, theirs)]
            stopped, never = (load_file(path) for path in newest)
            assert all((stopped[key] == never[key]).all() for key in never), name
        with np.load(mine / "scores.npz") as stopped, np.load(theirs / "scores.npz") as never:
            assert np.array_equal(stopped["logits"], never["logits"])
    assert not PREEMPTION.asked
