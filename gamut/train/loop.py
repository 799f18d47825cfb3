"""The training loop: from a plan and an objective to a trained model, resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from gamut.data.loader import Loader
from gamut.errors import GamutError, PlanError
from gamut.plan import Epoch
from gamut.recipe import schema
from gamut.train import milestones
from gamut.train.alarm import Alarm
from gamut.train.checkpoint import Keeper
from gamut.train.drift import compare
from gamut.train.engine import make_engine
from gamut.train.guard import BadSteps, Garbage, Watchdog
from gamut.train.holes import Holes
from gamut.train.meter import Meter
from gamut.train.objective import Moment, Objective
from gamut.train.preempt import Preemption
from gamut.train.schedule import Schedule
from gamut.train.state import State
from gamut.train.step import Asks, Stepper
from gamut.train.world import World


class Plans(Protocol):
    """Gives the plan of an epoch (`gamut.data.ahead.Ahead`)."""

    fingerprint: dict[str, str]

    def take(self, number: int) -> Epoch: ...


class Tracker(Protocol):
    """Where metrics go; a null object on all ranks but the first."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def checkpoint(self, step: int, uri: str, sha256: str) -> None: ...


class Progress(Protocol):
    """What the person at the terminal sees; a null object on all ranks but the first."""

    def update(self, done: float, values: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Result:
    """How a run, or this attempt at it, ended."""

    status: str  # finished | preempted: saved, to be started again
    state: State
    checkpoint: Path | None  # the newest
    schedule: Schedule


def train(
    *,
    objective: Objective,
    recipe: schema.Recipe,
    world: World,
    index: Any,
    plans: Plans,
    folder: Path,
    tracker: Tracker,
    progress: Progress,
    at_epoch_end: Callable[[int, Moment], dict[str, float] | None] | None = None,
    make_loader: Callable[..., Iterable] = Loader,
    preemption: Preemption | None = None,
) -> Result:
    """Train `objective` for `recipe.epochs` epochs of `plans`, or as far as it gets.

    Every rank calls it, after `world.start` and within `lease(folder, world)`, `folder` being the run folder. It
    resumes from the newest checkpoint in folder/checkpoints that verifies. `plans` is a `gamut.data.ahead.Ahead` below
    the run folder, with `lead` on each node's first rank; `index` names clips and is handed to `make_loader`.

    A SIGUSR2 or SIGTERM on any rank ends it at the next step boundary with a checkpoint and status `preempted`; pass a
    `Preemption` that was entered earlier to have those count that came before. `at_epoch_end(epoch, moment)` is called
    on every rank once an epoch's steps are taken, before the checkpoint of that moment, so it may be called again for
    the same epoch after a restart; it may use collectives and put the model in evaluation mode. Its values are logged.

    Raises PlanError or CheckpointError where a checkpoint is of another plan, recipe, model or engine, or where all are
    damaged; RunError past the limits of holes or of bad steps in a row, where the ranks have drifted apart, and where
    `guard.policy` is to stop. Where it is to go back, the status is `preempted` as well: the next attempt goes on from
    the last checkpoint without the steps in question.
    """
    preemption = preemption or Preemption()
    with preemption, Watchdog(recipe.run.timeout_seconds) as watchdog, Garbage() as garbage:
        accumulation = -(-recipe.step.packs // (world.size * recipe.loader.packs_per_forward))
        engine = make_engine(objective, recipe, world, accumulation)
        keeper = Keeper(folder / "checkpoints", recipe, world, plans.fingerprint, engine, objective)
        state = keeper.resume() or beginning(take(plans, 0, world))
        schedule = Schedule.of(recipe.optim, recipe.epochs, state.epoch_draws, state.epoch_steps)
        announce(world, schedule, state, recipe.epochs)

        alarm = Alarm(recipe.guard, state, folder, world, objective.collapsed)
        stepper = Stepper(objective, engine, world, alarm.allows)
        bad = BadSteps(world, index, state.skipped, state.bad_in_a_row)
        holes = Holes(folder, recipe.loader.max_holes, state, world)
        every = recipe.checkpoint.every_epochs

        def save(state: State, keep: bool = False) -> None:
            watchdog.beat()
            holes.sync()
            path = keeper.save(state, keep)
            tracker.checkpoint(state.step, str(path), keeper.sha256)
            watchdog.beat()

        while state.epoch < recipe.epochs:
            epoch = take(plans, state.epoch, world)
            objective.model.train()
            meter = Meter(epoch)
            facts = meter.facts() if world.first else {}  # logged once an epoch
            steps = make_loader(
                index,
                epoch,
                rank=world.rank,
                world=world.size,
                per_forward=recipe.loader.packs_per_forward,
                start_step=state.step_in_epoch,
                workers=recipe.loader.workers,
                prefetch=recipe.loader.prefetch,
                pin=world.device.type == "cuda",
                nodes=world.size // world.local_size if recipe.plan.locality == "node" else 1,
            )
            asked = False  # whether a checkpoint was due by the clock at the epoch's last step
            since = time.perf_counter()
            for step_in_epoch, batches in steps:
                waited = time.perf_counter() - since
                at = moment(state, epoch, recipe.epochs)
                asks = Asks(preemption.asked, world.first and keeper.minutes_passed())
                lr, decay = schedule.lr(at.fraction), schedule.decay(at.fraction)
                if alarm.leaves_out(state.step):
                    outcome = stepper.leave_out(batches, asks, waited)
                else:
                    outcome = stepper.take(batches, at, lr, decay, asks, waited)
                    if alarm.act(state.step, keeper):
                        return Result("preempted", state, keeper.newest, schedule)

                if outcome.applied:
                    bad.good()
                elif not outcome.refused:
                    bad.bad(state.step, batches, outcome.finite)
                found = [hole for batch in batches for hole in batch.holes]
                holes.add(outcome.holes, found, state.step + 1, epoch.number, epoch.draws)
                state = replace(
                    state,
                    step=state.step + 1,
                    step_in_epoch=step_in_epoch + 1,
                    draws=state.epoch_draws * state.epoch + epoch.draws_before(step_in_epoch + 1),
                    holes=holes.total,
                    holes_this_epoch=holes.this_epoch,
                    hole_reasons=dict(holes.reasons),
                    skipped=bad.skipped,
                    bad_in_a_row=bad.in_a_row,
                    leaps=alarm.leaps,
                    recent_losses=alarm.recent,
                    collapsed_in_a_row=alarm.in_a_row,
                )
                meter.add(step_in_epoch, time.perf_counter() - since, outcome.waited, outcome.bytes)
                if state.step % recipe.track.log_steps == 0:
                    values = outcome.values | meter.read() | {"lr": lr, "weight_decay": decay}
                    counts = holes.counts | {"skipped_steps": state.skipped, "leaps": state.leaps, "epoch": at.epoch}
                    tracker.log(state.step, values | counts | facts)
                    facts = {}
                    progress.update(state.draws / (state.epoch_draws * recipe.epochs), values)
                if recipe.guard.drift_steps and state.step % recipe.guard.drift_steps == 0:
                    compare(world, objective.replicas(), state.step)
                watchdog.beat()
                garbage.after_step(state.step)

                if outcome.asks.stop:
                    save(state)
                    return Result("preempted", state, keeper.newest, schedule)
                mid_epoch = state.step_in_epoch < epoch.steps
                asked = outcome.asks.save
                if mid_epoch and (asked or due(state, epoch, every)):
                    save(state)
                since = time.perf_counter()

            at = moment(state, epoch, recipe.epochs)
            if objective.averages(state.epoch):
                objective.average(engine.weights())
            if at_epoch_end is not None:
                watchdog.rest()  # an evaluation may take its time; its collectives have the same timeout
                with engine.whole():
                    values = at_epoch_end(state.epoch, at) or {}
                if values:
                    tracker.log(state.step, values)
                watchdog.beat()
            last = state.epoch + 1 == recipe.epochs
            save_now = last or asked or due(state, epoch, every)
            state = state.next_epoch()
            holes.new_epoch()
            keep = milestones.due(state.epoch, recipe.epochs, recipe.checkpoint.keep_every)
            if save_now or keep:
                save(state, keep)
        engine.close()
    if world.first and (said := holes.said()):
        print(said, flush=True)
    return Result("finished", state, keeper.newest, schedule)


def take(plans: Plans, number: int, world: World) -> Epoch:
    """The plan of an epoch, or on every rank the error of the one that could not get it."""
    epoch, problem = None, None
    try:
        epoch = plans.take(number)
    except (GamutError, OSError) as error:
        problem = error
    world.agree(problem, f"get the plan of epoch {number}")
    assert epoch is not None
    return epoch


def beginning(first: Epoch) -> State:
    """The state of a run that has not begun. Every epoch has the draws of the first."""
    if not first.draws:
        raise PlanError("The plan has no clips: look at the recipe's `subset` and at the shard set.")
    return State(epoch_draws=first.draws, epoch_steps=first.steps)


def moment(state: State, epoch: Epoch, epochs: int) -> Moment:
    """Where the run stands before its next step."""
    before = state.epoch_draws * state.epoch + epoch.draws_before(state.step_in_epoch)
    return Moment(state.epoch, state.step, state.step_in_epoch, before / (state.epoch_draws * epochs))


def due(state: State, epoch: Epoch, every: float) -> bool:
    """Whether the step just taken crossed a multiple of `every` epochs (0: never)."""
    if every <= 0:
        return False
    tiny = 1e-9  # a multiple that rounding put just below its step
    now = (state.epoch + state.step_in_epoch / epoch.steps) / every
    before = (state.epoch + (state.step_in_epoch - 1) / epoch.steps) / every
    return int(now + tiny) > int(before + tiny)


def announce(world: World, schedule: Schedule, state: State, epochs: int) -> None:
    """Print what the learning-rate rule came to, and where the run takes up."""
    if not world.first:
        return
    for note in schedule.notes:
        print(f"warning: {note}", flush=True)
    print(f"{schedule.batch:.1f} clips a step, peak learning rate {schedule.peak:.3g}", flush=True)
    if state.step:
        print(f"resuming after step {state.step}, epoch {state.epoch} of {epochs}", flush=True)
