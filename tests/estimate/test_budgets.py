"""What a step may cost in calls and waits of the host: counts, never seconds. Whoever makes a step dearer sees it here;
whoever makes it cheaper lowers the number."""

from __future__ import annotations

import pytest

from gamut.estimate.step import Account, account
from gamut.estimate.work import work_of
from gamut.recipe.load import load_recipe


def followed(stage: str, name: str, *overrides: str) -> Account:
    recipe = load_recipe(stage, name, ("data=nowhere", "compute.compile=false", *overrides))
    return account(recipe, work_of(recipe, 8), "cuda")


@pytest.mark.parametrize(
    ("stage", "name", "calls", "waits"),
    [
        ("pretrain", "asit_b", 1130, 0),  # 2,911 and 5 before the first changes for GPUs
        ("finetune", "elastic_audioset", 790, 0),
    ],
)
def test_a_micro_step_before_the_engine(stage: str, name: str, calls: int, waits: int) -> None:
    mine = followed(stage, name).phase("prepare", "micro")
    assert sum(call.launches > 0 and call.line != "backward" for call in mine) <= calls
    assert sum(call.wait for call in mine) <= waits


def test_waits_of_a_step_besides_its_micro_batches() -> None:
    """The two reductions, each read once, and two of the engine."""
    assert sum(call.wait for call in followed("pretrain", "asit_b").phase("count", "update")) <= 4


def large(*overrides: str) -> Account:
    """160 clips of two views of 6 s, bf16."""
    return followed("pretrain", "asit_b", "step.packs=8", "step.clips=160", "loader.packs_per_forward=1", *overrides)


def test_memory_of_a_large_forward() -> None:
    """GB, as it is written and with compiled blocks, the default."""
    for wish, most in (("false", 39), ("null", 30)):
        memory = large(f"compute.compile={wish}").memory
        assert (memory["activations"] + memory["logits"]) / 1e9 <= most
