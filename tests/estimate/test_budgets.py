"""What a step may cost in calls and waits of the host: counts, never seconds. Whoever makes a step dearer sees it here;
whoever makes it cheaper lowers the number."""

from __future__ import annotations

import functools

import pytest
import torch

from finetune.objective import Classify
from gamut.data.batch import PackedBatch
from gamut.data.share import Share, fetched
from gamut.estimate.fakes import as_fake, codes_of_kept, surroundings
from gamut.estimate.step import Account, account, heard, objective_of, widths
from gamut.estimate.trace import Trace, tracing
from gamut.estimate.work import Work, work_of
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe


@functools.cache
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


def test_calls_outside_of_what_is_compiled() -> None:
    mine = followed("pretrain", "asit_b", "compute.compile=null").phase("prepare", "micro")
    assert sum(call.launches > 0 and call.line != "backward" and not call.compiled for call in mine) <= 410


def test_what_the_front_end_of_a_packed_clip_moves() -> None:
    """Mixing, means and log-mel of a clip of 10 s and its partner, where blocks are compiled: 2 % of ElasticAST's step
    on an H200. The clip is 0.32 MB, its frames before the transform 2 MB."""
    words = ("compute.compile=null", "step.packs=256", "step.clips=1", "loader.packs_per_forward=256")
    account = followed("finetune", "elastic_audioset", *words)
    moved = sum(call.bytes for call in account.phase("prepare") if call.line.startswith("gamut/audio/"))
    assert moved / account.work.clips <= 14e6  # 59 MB before that was compiled


def test_waits_of_a_step_besides_its_micro_batches() -> None:
    """The two reductions, each read once, and two of the engine."""
    assert sum(call.wait for call in followed("pretrain", "asit_b").phase("count", "update")) <= 4


def large(*overrides: str) -> Account:
    """160 clips of two views of 6 s, bf16."""
    return followed("pretrain", "asit_b", "step.packs=8", "step.clips=160", "loader.packs_per_forward=1", *overrides)


@pytest.mark.long
def test_memory_of_a_large_forward() -> None:
    """GB, as it is written and with compiled blocks, the default."""
    for wish, most in (("false", 39), ("null", 30)):
        memory = large(f"compute.compile={wish}").memory
        assert (memory["activations"] + memory["logits"]) / 1e9 <= most


@pytest.mark.parametrize("packs", [2, pytest.param(7, marks=pytest.mark.long)])
def test_waits_of_an_evaluation_do_not_grow_with_its_forwards(packs: int) -> None:
    recipe = load_recipe("finetune", "esc50", ("data=nowhere", "compute.compile=false"))
    work = work_of(recipe, 1)
    batch = work.batch()
    with surroundings(False, True):
        answers = heard(recipe, work, batch, True)
        trace = Trace(torch.device("cuda", 0), answers, False, widths(recipe, work), codes_of_kept())
        with tracing(trace) as fake:
            _evaluate_on(trace, as_fake(fake, batch), recipe, work, packs)
    assert sum(call.wait for call in trace.calls if call.phase == "evaluate") == 1


def _evaluate_on(trace: Trace, batch: PackedBatch, recipe: Recipe, work: Work, packs: int) -> None:
    objective = objective_of(recipe, work, trace.device)
    assert isinstance(objective, Classify)
    trace.phase, share = "evaluate", Share()
    for _ in range(packs):
        share.add(batch, {"logits": objective.logits(batch)})
    assert not [call.line for call in trace.calls if call.phase == "evaluate" and call.wait]
    assert sum(call.launches > 0 for call in trace.calls if call.phase == "evaluate") > 100 * packs
    fetched([torch.zeros(2, 50, device=trace.device)] * packs)
