"""Runs a recipe's own step on fake tensors, and keeps the account of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gamut.data.batch import PackedBatch
from gamut.estimate.answers import Answers, listening
from gamut.estimate.calls import Call
from gamut.estimate.fakes import as_fake, codes_of_kept, fake_tensors, surroundings
from gamut.estimate.fuse import fuse, made_again
from gamut.estimate.ghost import Ghost
from gamut.estimate.trace import Trace, tracing
from gamut.estimate.work import Work
from gamut.recipe import schema
from gamut.registry import Registry
from gamut.train.blocks import compute_twice
from gamut.train.objective import Moment, Objective, Prepared, pretraining
from gamut.train.step import Asks, Stepper
from gamut.train.world import World

# What fine-tuning trains, by what it is given.
SUPERVISED: Registry[Any] = Registry(
    "kind of fine-tuning",
    {
        "sounds": "finetune.objective:Classify",
        "features": "finetune.heads:TagFeatures",
        "encoder": "finetune.end_to_end:EndToEnd",
    },
)
LISTENED = 4  # clips of the real pass on the CPU, of which a GPU's account takes shares
LIKE_AUDIOSET = (-4.27, 4.57)  # mean and deviation of a log-mel: what they are changes no shape


@dataclass(frozen=True)
class Account:
    """A step with one micro-batch, call by call, and the memory that it took."""

    recipe: schema.Recipe
    work: Work
    calls: list[Call]
    memory: dict[str, int]  # bytes by kind, when they were the most
    peak: int
    waiting: int  # bytes of a prepared micro-batch, of which there are A before the first forward
    beside: int  # bytes at the most while one is prepared in a stream of its own; 0 where there is none
    parameters: int
    read: int  # bytes that were read from storage for the micro-batch
    copied: dict[str, int]  # bytes from host to device, by whether the host waits for them
    guessed: dict[str, int]  # sizes that depend on values which nothing told

    @property
    def held(self) -> dict[str, float]:
        """Bytes of a rank by kind at the most, the micro-batches that wait for their forward included, and those that
        are prepared for the next step in a stream of their own: its memory is not shared with that of the training."""
        others = self.waiting * (self.work.forwards - 1)
        waiting = others + (others + self.beside if self.beside else 0)
        return {kind: float(count) for kind, count in (*self.memory.items(), ("prepared", waiting)) if count}

    @property
    def flops(self) -> float:
        """Of matrix products and attention, for the micro-batch that was followed."""
        return sum(call.flops for call in self.phase("prepare", "micro"))

    @property
    def flops_a_step(self) -> float:
        """The same of a mean step, of all ranks."""
        return self.flops * self.work.scale * self.work.epoch.packs / self.work.packs

    def phase(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.phase in names]


def objective_of(recipe: schema.Recipe, work: Work, device: torch.device) -> Objective:
    """What the recipe trains, by the stage's own builder, with its model on the device."""
    front, classes = recipe.front, work.sounds.classes
    mean, std = LIKE_AUDIOSET if front.mean is None or front.std is None else (front.mean, front.std)
    if recipe.stage == "pretrain":
        return pretraining(recipe, mean, std, device)
    labels = [f"class {number}" for number in range(classes)]
    if recipe.encoder:
        return SUPERVISED["encoder"](recipe, classes, labels, recipe.seed, device)
    if work.records is not None:
        shape = work.records.layers, work.records.steps, work.records.dim
        return SUPERVISED["features"](recipe, classes, shape, {"labels": labels}, recipe.seed, device)
    return SUPERVISED["sounds"](recipe, classes, mean, std, recipe.seed, device)


def account(recipe: schema.Recipe, work: Work, kind: str) -> Account:
    """Follow a step of one micro-batch on a fake device. kind: cuda or cpu."""
    gpu = kind == "cuda"
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    deterministic = recipe.run.deterministic or not gpu
    batch = work.batch()
    with surroundings(deterministic, gpu):
        answers = heard(recipe, work, batch, gpu)
        trace = Trace(
            device, answers, deterministic, widths(recipe, work), codes_of_kept(), recipe.compute.compiles(kind)
        )
        with tracing(trace) as fake:
            return _follow(recipe, work, as_fake(fake, batch), trace, device)


def widths(recipe: schema.Recipe, work: Work) -> frozenset[int]:
    """Of logits."""
    asit = recipe.asit
    of = (asit.prototypes, asit.prototypes_data) if recipe.stage == "pretrain" else (work.sounds.classes,)
    return frozenset(width for width in of if width)


def _follow(recipe: schema.Recipe, work: Work, batch: PackedBatch, trace: Trace, device: torch.device) -> Account:
    memory = trace.memory
    objective = objective_of(recipe, work, device)
    for copy in objective.copies():
        for tensor in [*copy.parameters(), *copy.buffers()]:
            memory.call_it(tensor, "teacher")
    world = World(0, 1, 0, 1, device, 1)
    if recipe.compute.activations != "keep":
        compute_twice(objective.blocks(objective.model), "recompute", device)
    with trace.told.noting():
        engine = Ghost(objective, recipe, world, work.ranks, trace.hold, memory.call_it, trace.communicate)
    leaves = trace.told.leaves(engine.trained)
    memory.begin()
    waiting = _name_phases(objective, engine, trace)
    objective.model.train()
    at = Moment(recipe.epochs // 2, 0, 0, 0.5)
    with trace.hold("activations"):
        outcome = Stepper(objective, engine, world).take([batch], at, 1e-3, 0.0, Asks(), 0.0)
    assert outcome.applied, "a step without values was not applied"
    del leaves
    parameters = sum(parameter.numel() for parameter in objective.model.parameters())
    calls, most = [call for call in trace.calls if call.phase not in ("build", "once")], dict(memory.most)
    if trace.parts:
        most["activations"] = max(0, most.get("activations", 0) - made_again(calls))
        calls = fuse(calls)
    return Account(
        recipe,
        work,
        calls,
        most,
        sum(most.values()),
        waiting[0],
        waiting[1] if device.type == "cuda" else 0,
        parameters,
        batch.bytes,
        dict(trace.copied),
        dict(trace.answers.guessed),
    )


def _name_phases(objective: Objective, engine: Ghost, trace: Trace) -> list[int]:
    """Have the trace told what of a step is done: prepare, count, micro, update. What a prepared micro-batch takes goes
    into the list that this gives: when it is done, and at the most."""
    prepare, micro_step, waiting = objective.prepare, engine.micro_step, [0, 0]

    def prepared(given: PackedBatch, at: Moment) -> Prepared:
        trace.phase, before = "prepare", trace.memory.total
        result = prepare(given, at)
        waiting[:] = trace.memory.total - before, trace.memory.peak - before
        trace.phase = "count"
        return result

    @contextlib.contextmanager
    def stepped(last: bool) -> Iterator[Any]:
        trace.phase = "micro"
        with micro_step(last) as module:
            yield module
        trace.phase = "update"

    objective.prepare = prepared  # type: ignore[method-assign, assignment]
    engine.micro_step = stepped  # type: ignore[method-assign]
    return waiting


def heard(recipe: schema.Recipe, work: Work, batch: PackedBatch, gpu: bool) -> Answers:
    """What a real `prepare` on the CPU asks its tensors. Of a GPU's account every size is the share that it was of a
    few clips; of a CPU's every question has its own answer."""
    answers = Answers()
    with fake_tensors():
        objective = objective_of(recipe, work, torch.device("cpu"))
    if gpu:
        batch = work.first(LISTENED).batch()
    at = Moment(recipe.epochs // 2, 0, 0, 0.5)
    with listening(answers), contextlib.suppress(Exception):  # what it cannot tell is guessed, and said to be
        objective.prepare(batch, at)
    return answers
