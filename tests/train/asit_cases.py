"""What ranks do with the real objective, at a tiny size; in a module of its own, so that a rank can import it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

from gamut import compiler
from gamut.recipe import schema
from gamut.train.engine import Engine
from gamut.train.loop import make_engine
from gamut.train.objective import Moment
from gamut.train.partitions import is_cut, whole_state
from gamut.train.step import Asks, Stepper
from gamut.train.world import World
from pretrain.asit import Asit
from pretrain.teacher import momentum
from tests.asit import RECIPE
from tests.packs import packed

STEPS = 4
RATE = 1e-3


def recipe_of(engine: int | str, precision: str, compute: schema.Compute) -> schema.Recipe:
    """ZeRO by stage, or an engine by name; DeepSpeed's own threshold, below which it keeps parameters gathered."""
    return schema.Recipe(
        precision=precision,
        engine=engine if isinstance(engine, str) else "deepspeed",
        compute=compute,
        optim=schema.Optim(clip=0.5),
        step=schema.Step(packs=4, clips=2),
        loader=schema.Loader(packs_per_forward=1),
        deepspeed={} if isinstance(engine, str) else {"zero_optimization": {"stage": engine}},
    )


@contextmanager
def no_gather(parameters: list[Any]) -> Iterator[None]:
    """An error where one of these is gathered within it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the teacher's update gathers a parameter")

    cut = [parameter for parameter in parameters if is_cut(parameter)]
    before = [(parameter.all_gather, parameter.all_gather_coalesced) for parameter in cut]
    for parameter in cut:
        parameter.all_gather = parameter.all_gather_coalesced = refuse
    yield
    for parameter, (one, several) in zip(cut, before, strict=True):
        parameter.all_gather, parameter.all_gather_coalesced = one, several


def batches(world: World, step: int) -> list[Any]:
    """A step's four micro-batches of three clips, dealt to the ranks; the last is empty."""
    made = [packed([64, 96] * 3 if number < 3 else [], views=2, seed=10 * step + number) for number in range(4)]
    return made[world.rank :: world.size]


def asit_run(
    world: World,
    engine_of: int | str,
    precision: str = "fp32",
    compute: schema.Compute | None = None,
    look: Callable[[Engine, Any], None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Four steps: losses, gradient norms, weights, teacher and centres, and how far the teacher is from an average of
    whole students."""
    recipe = recipe_of(engine_of, precision, compute or schema.Compute())
    options = replace(RECIPE.asit, weight_koleo=0.1, **changes)
    engine_keys = {"engine": recipe.engine, "deepspeed": recipe.deepspeed}
    task = Asit(replace(RECIPE, precision=precision, asit=options, **engine_keys), -4.0, 4.0, world.device)
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    dense = {name: value.clone() for name, value in before.items()}
    engine = make_engine(task, recipe, world, 4 // world.size)
    stepper = Stepper(task, engine, world)
    after_step = task.after_step

    def update(at: Moment) -> dict[str, float]:
        with no_gather([*task.teacher.parameters(), *task.model.parameters()]):
            values = after_step(at)
        cut = [p for p in task.teacher.parameters() if is_cut(p)]
        assert bool(cut) == (engine_of == 3)
        assert all(p.ds_status == ZeroParamStatus.NOT_AVAILABLE for p in cut)
        return values

    task.after_step = update
    lines = []
    for step in range(STEPS):
        at = Moment(0, step, step, step / STEPS)
        outcome = stepper.take(batches(world, step), at, RATE, 0.04, Asks(), 0.0)
        assert outcome.applied
        lines.append(outcome.values)
        students = whole_state(task.model)
        for name, slow in dense.items():
            slow.lerp_(students[name].float(), 1.0 - momentum(task.options.teacher_momentum, at.fraction))
        if step == 1:
            with engine.whole():  # a picture by one rank alone, between two steps
                if world.first:
                    batch = packed([64, 64], views=2)
                    clean, _, rebuilt = task.rebuild(batch, at)
                    assert clean.shape == rebuilt.shape
                    assert torch.isfinite(rebuilt).all()
    extra = task.extra_state()
    teacher = {name.removeprefix("teacher."): value for name, value in extra.items() if name.startswith("teacher.")}
    assert all(value.dtype == torch.float32 for value in teacher.values())
    answer = {
        "lines": lines,
        "weights": {name: value.numpy().copy() for name, value in engine.weights().items()},
        "extra": {name: value.numpy().copy() for name, value in extra.items()},
        "from dense": max(float((teacher[name] - dense[name]).abs().max()) for name in dense),
        "still": [name for name in before if "weight" in name and not (teacher[name] - before[name]).any()],
    }
    engine.close()
    batch = packed([64, 64], views=2)
    task.model(*_inputs(task, batch))  # a plain module again, on any rank
    return answer


def _inputs(task: Any, batch: Any) -> tuple[Any, ...]:
    views = task.prepare(batch, Moment(0, 0, 0, 0.0)).inputs
    return views.hidden, views.student, None, None, None


def engines(world: World, folder: Path, changes: dict[str, Any]) -> dict[str, dict]:
    """The run with each engine. changes: of the objective."""
    return {
        "1": asit_run(world, 1, **changes),
        "3": asit_run(world, 3, **changes),
        "oss": asit_run(world, "oss", **changes),
        "3-bf16": asit_run(world, 3, "bf16", **changes),
    }


def compiled(
    world: World, engine_of: int | str, backend: str, precision: str = "fp32", activations: str = "keep"
) -> dict[str, dict]:
    """The run as it is, and compiled by that back end of torch.compile."""
    compiler.BACKEND = backend
    plain = schema.Compute(activations=activations)
    return {
        "plain": asit_run(world, engine_of, precision, plain),
        "compiled": asit_run(world, engine_of, precision, replace(plain, compile=True)),
    }


def activations(world: World, engine_of: int | str, precision: str) -> dict[str, dict]:
    """The run with activations kept, computed again, and offloaded besides."""
    return {
        kind: asit_run(world, engine_of, precision, schema.Compute(activations=kind))
        for kind in ("keep", "recompute", "offload")
    }
