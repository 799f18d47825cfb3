"""An evaluation that hangs ends the run, and one that is only slow does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune import evaluation, scoring
from gamut.train.world import World
from tests.train.ranks import Ranks

from .test_preempted import SMALL, tuned

LIMIT = 4.0


def stuck(world: World, line: list[str]) -> int:
    """Fine-tune with a slow first evaluation, whose batches take longer together than may pass without one; the second
    hangs."""
    whole: Callable[..., Any] = evaluation.evaluate
    loader: Callable[..., Any] = evaluation.Loader
    evaluations: list[int] = []

    def slowly(index: Any, plan: Any, **how: Any) -> Any:
        steps = list(loader(index, plan, **how))
        batches = sum(len(batches) for _, batches in steps)
        assert batches >= 3, batches
        for number, some in steps:
            yield number, (time.sleep(1.5 * LIMIT / batches if len(evaluations) == 1 else 1000) or one for one in some)

    def evaluate(*given: Any, **more: Any) -> Any:
        evaluations.append(len(evaluations))
        return whole(*given, **more | {"make_loader": slowly})

    scoring.evaluate = evaluate  # type: ignore[assignment]
    return tuned(world, line)


def test_an_evaluation_that_hangs_ends_the_run_and_a_slow_one_does_not(small_set: Path, tmp_path: Path) -> None:
    line = ["elastic_esc10", f"data={small_set}", f"run.folder={tmp_path}", "run.name=run", *SMALL]
    line += [
        "finetune.evaluate_epochs=1",
        f"run.timeout_seconds={LIMIT}",
        "step.tokens=32",
        "loader.packs_per_forward=1",
    ]
    ranks = Ranks(1, stuck, line)
    assert ranks.wait() == [None], ranks.log()
    assert "epoch 1: accuracy" in ranks.log()
    assert f"Timeout: nothing has moved for {LIMIT:g} s in rank 0" in ranks.log()
    assert "which is at: an evaluation." in ranks.log()
    assert "finetune/evaluation.py" in ranks.log()
