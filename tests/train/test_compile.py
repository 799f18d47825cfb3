"""Compiled blocks: the same training, compiled once, in checkpoints that look like any other.

With the back end `aot_eager` torch traces and differentiates the graphs that it would compile, and runs them as they
are: then all must be bit for bit the same. What a compiler makes of them rounds in other places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from asit_cases import compiled
from compile_cases import changing
from ranks import run
from test_asit_engines import assert_alike
from toy import Toy, toy_recipe

from gamut import compiler
from gamut.errors import RecipeError
from gamut.models.layout import layout
from gamut.probe.pictures import attention_maps
from gamut.recipe import schema
from gamut.train import blocks
from pretrain.asit import Asit
from tests.asit import NOW, objective, whole_step
from tests.packs import packed

CPU = torch.device("cpu")
PACKS = ([64, 96] * 2, [96] * 6, [], [32, 48, 80, 16] * 2, [96, 16], [16] * 10)  # frames of the views of clips


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from torch._dynamo import reset

    monkeypatch.setattr(compiler, "BACKEND", "aot_eager")
    reset()
    yield
    reset()


def prepare(task: Asit, **compute: object) -> Asit:
    copies = [block for module in task.copies() for block in task.blocks(module)]
    blocks.prepare(task.blocks(task.model), copies, schema.Compute(**compute), CPU)  # type: ignore[arg-type]
    return task


@pytest.mark.usefixtures("backend")
def test_blocks_are_compiled_once_for_packs_of_any_lengths_and_change_nothing() -> None:
    from torch._dynamo.utils import counters

    plain, fast = objective(), prepare(objective(), compile=True)
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())
    assert list(fast.extra_state()) == list(plain.extra_state())
    counters.clear()
    for number, frames in enumerate(PACKS):
        batches = [packed(frames, views=2, seed=number), packed([96, 96], views=2, seed=7)]
        mine, theirs = whole_step(fast, batches), whole_step(plain, batches)
        assert mine[0] == theirs[0]
        assert all(torch.equal(mine[2][name], gradient) for name, gradient in theirs[2].items())
        for task in (fast, plain):
            task.after_step(NOW)
        # Before and after attention, of the student and of the teacher: whatever the depth, whatever the lengths; and
        # the loss of data tokens, of rows that begin their tensor (on a CPU, where some are masked) and of others; and
        # the blocks of masks, as they are drawn and as they are laid.
        assert counters["stats"]["unique_graphs"] in (7, 8)
        assert not counters["graph_break"]


@pytest.mark.usefixtures("backend")
@pytest.mark.long
def test_ragged_steps_and_evaluations_compile_nothing_after_the_first() -> None:
    from torch._dynamo.utils import counters

    task = prepare(objective(), compile=True)
    random = torch.Generator().manual_seed(0)
    counters.clear()
    graphs = []
    for step in range(8):
        clips = int(torch.randint(1, 6, (), generator=random))
        frames = (16 * torch.randint(1, 12, (2 * clips,), generator=random)).tolist()
        whole_step(task, [packed(frames, views=2, seed=step)])
        task.model.eval()
        for look in (torch.no_grad, torch.inference_mode):
            with look():
                where = task.model.backbone.layout(torch.tensor(frames), tuple(frames))
                patches = torch.zeros(sum(frames) // 16 * 8, 256)
                task.model.backbone(patches, where)
                task.teacher.backbone(patches, where)  # type: ignore[operator]
        task.model.train()
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1, graphs
    assert not counters["graph_break"]


def test_what_is_compiled_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [schema.Compute(compile=wish).compiles("cuda") for wish in (None, True, False)] == [True, True, False]
    assert [schema.Compute(compile=wish).compiles("cpu") for wish in (None, True, False)] == [False, True, False]
    task, gpu = objective(), torch.device("cuda", 0)
    assert blocks.prepare(task.blocks(task.model), [], schema.Compute(), CPU) == ""
    assert blocks.prepare(Toy().blocks(Toy().model), [], schema.Compute(), gpu) == ""  # nothing of ours
    assert not task.compiled()
    monkeypatch.setattr(blocks, "has_triton", lambda: True)
    assert "compiled in the first step" in blocks.prepare(task.blocks(task.model), [], schema.Compute(), gpu)
    assert task.compiled()


@pytest.mark.parametrize("lacking", ["triton", "compiler"])
def test_a_gpu_without_a_compiler_runs_as_it_is_written(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "has_triton", lambda: lacking != "triton")
    if lacking == "compiler":
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.delenv("CC", raising=False)
    task, gpu = objective(), torch.device("cuda", 0)
    said = blocks.prepare(task.blocks(task.model), [], schema.Compute(), gpu)
    assert said.startswith("warning: ")
    assert "install" in said
    assert "\n" not in said
    assert not task.compiled()
    with pytest.raises(RecipeError, match=r"compute\.compile needs"):
        blocks.prepare(task.blocks(task.model), [], schema.Compute(compile=True), gpu)


@pytest.mark.usefixtures("backend")
def test_what_looks_into_a_block_sees_it() -> None:
    where = layout(torch.tensor([64, 96]), (64, 96), class_token=True)
    patches = torch.randn(80, 256, generator=torch.Generator().manual_seed(0))
    plain, fast = objective(), prepare(objective(), compile=True)
    fast.teacher.backbone(patches, where)  # compiled before anybody looks
    for mine, theirs in zip(
        attention_maps(fast.teacher.backbone, patches, where), attention_maps(plain.teacher.backbone, patches, where)
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("size", "engine", "precision", "activations"),
    [
        pytest.param(1, "oss", "bf16", "recompute", marks=pytest.mark.long),
        pytest.param(2, 3, "fp32", "keep", marks=pytest.mark.long),
        pytest.param(1, 0, "fp32", "recompute", marks=pytest.mark.long),
        pytest.param(2, 1, "fp32", "keep", marks=pytest.mark.long),
        pytest.param(2, 1, "bf16", "offload", marks=pytest.mark.long),
        pytest.param(1, 2, "bf16", "keep", marks=pytest.mark.long),
        pytest.param(2, 2, "fp32", "recompute", marks=pytest.mark.long),
        pytest.param(2, 3, "fp32", "recompute", marks=pytest.mark.long),
        pytest.param(2, 3, "bf16", "keep", marks=pytest.mark.long),
        pytest.param(2, "oss", "fp32", "keep", marks=pytest.mark.long),
    ],
)
def test_every_engine_trains_traced_blocks_as_plain_ones(
    size: int, engine: int | str, precision: str, activations: str
) -> None:
    answers = run(size, compiled, engine, "aot_eager", precision, activations, timeout_seconds=600.0, seconds=600.0)
    for answer in answers:
        mine, theirs = answer["compiled"], answer["plain"]
        assert mine["from dense"] == 0.0
        assert mine["lines"] == theirs["lines"]
        for part in ("weights", "extra"):
            assert mine[part].keys() == theirs[part].keys()
            for name, value in mine[part].items():
                assert value.tobytes() == theirs[part][name].tobytes(), (part, name)


@pytest.mark.parametrize(
    ("size", "engine", "precision"),
    [
        (1, 1, "fp32"),
        (2, 1, "bf16"),
        (2, 2, "fp32"),
        (2, 3, "fp32"),
        (2, "oss", "fp32"),
    ],
)
@pytest.mark.long
def test_compiled_blocks_train_alike(size: int, engine: int | str, precision: str) -> None:
    for answer in run(size, compiled, engine, "inductor", precision, timeout_seconds=600.0, seconds=600.0):
        if precision == "fp32":
            assert_alike(answer["compiled"], answer["plain"])
            continue
        for mine, theirs in zip(answer["compiled"]["lines"], answer["plain"]["lines"], strict=True):
            assert math.isclose(mine["loss"], theirs["loss"], rel_tol=0.01)


def test_a_run_goes_on_compiled_from_a_plain_checkpoint_and_back(tmp_path: Path) -> None:
    recipe = toy_recipe(run=schema.Run(threads=1, timeout_seconds=600.0))  # a compiler on a crowded machine
    setup = {"timeout_seconds": 600.0, "seconds": 600.0}
    ends = run(1, changing, tmp_path / "mixed", recipe, [False, True, False], "aot_eager", **setup)[0]
    assert [end["status"] for end in ends] == ["preempted", "preempted", "finished"]
    (whole,) = run(1, changing, tmp_path / "plain", recipe, [False], "aot_eager", **setup)[0]
    for part in ("weights", "extra"):
        assert whole[part].keys() == ends[-1][part].keys()
        for name, value in whole[part].items():
            assert value.tobytes() == ends[-1][part][name].tobytes(), (part, name)


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="no transformer blocks of ours"):
        blocks.prepare(Toy().blocks(Toy().model), [], schema.Compute(compile=True), CPU)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        RecipeError, match=r"needs a compiler \(g\+\+, clang\+\+, or what CXX names\), and none is to be"
    ):
        prepare(objective(), compile=True)
