"""The training loop: from a plan and an objective to a trained model, resumable at any step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gamut.data.batch import PackedBatch
from gamut.data.loader import Loader
from gamut.errors import GamutError, PlanError, RunError
from gamut.plan import Epoch
from gamut.preemption import Preempted
from gamut.recipe import schema
from gamut.train.alarm import Alarm
from gamut.train.checkpoint import Keeper
from gamut.train.early import Coming, Steps, Stream
from gamut.train.engine import Engine
from gamut.train.growth import Generation
from gamut.train.guard import BadSteps, Garbage, compare_replicas
from gamut.train.holes import Holes
from gamut.train.meter import Meter
from gamut.train.objective import Moment, Objective
from gamut.train.restore import resume
from gamut.train.schedule import Schedule, is_due
from gamut.train.session import Session
from gamut.train.spans import Spent
from gamut.train.state import State, beginning, crosses, moment
from gamut.train.step import Asks, Outcome, Ready, Stepper
from gamut.train.trace import Trace
from gamut.train.world import World
from gamut.watchdog import WATCHDOG

AtEpochEnd = Callable[[int, Moment], dict[str, float] | None]


@dataclass(frozen=True)
class Result:
    """How a run, or this attempt at it, ended."""

    status: str  # finished | preempted: saved, to be started again
    state: State
    checkpoint: Path | None  # the newest
    schedule: Schedule


def train(
    objective: Objective,
    session: Session,
    at_epoch_end: AtEpochEnd | None = None,
    make_loader: Callable[..., Loader] = Loader,
) -> Result:
    """Train `objective` for the recipe's epochs of the session's plans, or as far as it gets.

    Every rank calls it, after `world.start`, with the session that `open_session` gave. It resumes from the newest
    checkpoint in the run folder that verifies. The session's `index` names clips and is handed to `make_loader`.

    A SIGUSR2 or SIGTERM on any rank ends it at the next step boundary with a checkpoint and status `preempted`; so does
    a Preempted from `at_epoch_end`.
    `at_epoch_end(epoch, moment)` is called on every rank once an epoch's steps are taken, before the checkpoint of that
    moment, so it may be called again for the same epoch after a restart; it may use collectives and put the model in
    evaluation mode. Its values are logged.

    Raises PlanError or CheckpointError where a checkpoint is of another plan, recipe, model or engine, or where all are
    damaged; RunError past the limits of holes or of bad steps in a row, where replicas have diverged, and where
    `guard.policy` is to stop. Where it is to go back, the status is `preempted` as well: the next attempt goes on from
    the last checkpoint without the steps in question.
    """
    limit = session.recipe.run.timeout_seconds
    with session.preemption, WATCHDOG.within(limit, "making the engine"), Garbage() as garbage:
        try:
            training = _Training(objective, session, at_epoch_end, make_loader, garbage)
            status = training.run()
        except torch.OutOfMemoryError as error:
            raise RunError(too_large(session.recipe, error)) from error
    if status == "finished" and session.world.first and (said := training.holes.said()):
        print(said, flush=True)
    return Result(status, training.state, training.keeper.newest, training.schedule)


class _Training:
    """One attempt at a run: `state` is where it stands, the rest does one duty each."""

    def __init__(
        self,
        objective: Objective,
        session: Session,
        at_epoch_end: AtEpochEnd | None,
        make_loader: Callable[..., Loader],
        garbage: Garbage,
    ) -> None:
        recipe, world, folder = session.recipe, session.world, session.folder
        self.objective, self.session, self.recipe, self.world = objective, session, recipe, world
        self.at_epoch_end, self.make_loader = at_epoch_end, make_loader
        self.garbage = garbage
        accumulation = -(-recipe.step.packs // (world.size * recipe.loader.per_forward))
        self.engine = make_engine(objective, recipe, world, accumulation)
        self.keeper = Keeper(
            folder / "checkpoints",
            recipe,
            world,
            session.plans.fingerprint,
            self.engine,
            objective,
            session.tracker.checkpoint,
        )
        self.keeper.go_on_with = self._go_on_with
        WATCHDOG.beat("taking up the newest checkpoint")
        self.state = state = resume(self.keeper) or beginning(take(self.session, 0))
        self.schedule = Schedule.of(recipe.optim, recipe.epochs, state.epoch_draws, state.epoch_steps)
        announce(world, self.schedule, state, recipe.epochs)
        self.alarm = Alarm(recipe.guard, state, folder, world, objective.collapsed)
        self.stepper = Stepper(objective, self.engine, world, self.alarm.allows, world.device)
        self.spent = Spent()
        self.stream = stream_of(world.device)
        self.trace = Trace(recipe.track.trace_steps if world.first else [], folder, world.device)
        self.bad = BadSteps(world, self.session.index, state.skipped, state.bad_in_a_row)
        self.holes = Holes(folder, recipe.loader.max_holes, state, world)
        self.asked = False  # whether a checkpoint was due after the step before
        self.staged = 0  # the step after which what is being written last went a stage further
        self.loader: Loader | None = None
        self.ending = contextlib.ExitStack()

    def run(self) -> str:
        """Train to the end, or until the attempt has to end: finished | preempted."""
        with contextlib.closing(self.trace), self.ending:
            self.ending.callback(self.keeper.leave)
            while self.state.epoch < self.recipe.epochs:
                epoch = take(self.session, self.state.epoch, self.state.step_in_epoch)
                if not self._steps(epoch):
                    return "preempted"
                if epoch.last and not self._end(epoch):
                    return "preempted"
            self.keeper.finish()
        self.engine.close()
        if self.keeper.copies is not None:  # for less than the others wait for this rank
            self.keeper.copies.finish(patience=self.recipe.run.timeout_seconds / 2)
        return "finished"

    def _steps(self, epoch: Epoch) -> bool:
        """Take the steps of an epoch, or of the block of it, that are left; False where the attempt ends among them."""
        self.objective.model.train()
        WATCHDOG.beat(f"step {self.state.step + 1}")
        meter = Meter(epoch, self.world.device, self.world.size, self.session.peak_seconds)
        facts = meter.facts() if self.world.first else {}  # logged once a plan
        self.asked = False
        self.trace.before(self.state.step + 1)
        since = time.perf_counter()
        steps = self._coming(epoch)
        while (coming := steps.take()) is not None:
            outcome = self._step(epoch, coming, steps)
            if outcome is None:
                return False
            self._count(epoch, coming.number, coming.batches, outcome)
            seconds = time.perf_counter() - since
            meter.add(coming.number, seconds, outcome.waited, outcome.bytes)
            if outcome.spans:
                self.spent.add(seconds, *outcome.spans)
            if self.state.step % self.recipe.track.log_steps == 0:
                done = moment(self.state, epoch, self.recipe.epochs).fraction
                self._log(coming.at, done, outcome.values | meter.read() | self.spent.read(), facts)
                facts = {}
            self._guard()
            # What a step's reduction says of writing may have been said before the step before it had ended.
            if not outcome.asks.writing and self.state.step > self.staged + 1:
                self.staged = self.state.step
                self.keeper.go_on()
            if outcome.asks.stop:
                self._leave(epoch)
                return False
            self.asked = outcome.asks.save
            if self.asked and not self._through(epoch):
                self._save()
            self.trace.before(self.state.step + 1)
            since = time.perf_counter()
        return True

    def _coming(self, epoch: Epoch) -> Steps:
        """The plan's steps that are left."""

        def at(number: int) -> Moment:
            state = self.state
            step = state.step + number - state.step_in_epoch
            return moment(replace(state, step=step, step_in_epoch=number), epoch, self.recipe.epochs)

        def prepare(batches: list[PackedBatch], at: Moment, agreed: Asks) -> Ready:
            return self.stepper.prepare(batches, at, self._asks(epoch, at, agreed.save))

        return Steps(self._loader(epoch), at, prepare, self.alarm.leaves_out, self.stream)

    def _asks(self, epoch: Epoch, at: Moment, to_be_saved: bool = False) -> Asks:
        """What this rank wishes after the step that begins `at`. to_be_saved: a checkpoint will be made before it."""
        by_epochs = crosses(at, epoch, self.recipe.checkpoint.every_epochs)
        save = self.world.first and self.keeper.due(by_epochs, to_be_saved)
        return Asks(self.session.preemption.asked, save, self.keeper.busy)

    def _loader(self, epoch: Epoch) -> Loader:
        """One for all plans: its workers go on from one to the next."""
        if self.loader is not None:
            self.loader.go_on(epoch)
            return self.loader
        recipe, world = self.recipe, self.world
        loader = self.make_loader(
            self.session.index,
            epoch,
            rank=world.rank,
            world=world.size,
            per_forward=recipe.loader.per_forward,
            start_step=self.state.step_in_epoch,
            workers=recipe.loader.workers,
            prefetch=recipe.loader.prefetch,
            pin=world.device.type == "cuda",
            nodes=world.size // world.local_size if recipe.plan.locality == "node" else 1,
            later=self.session.plans.planned,
            across=not recipe.plan.grow,
        )
        self.loader = self.ending.enter_context(contextlib.closing(loader))
        return self.loader

    def _step(self, epoch: Epoch, coming: Coming, steps: Steps) -> Outcome | None:
        """Take a step, or leave it out; None where the attempt ends, to go back to before it."""
        batches, at, waited = coming.batches, coming.at, coming.waited
        asks = self._asks(epoch, at)
        if self.alarm.leaves_out(at.step):
            return self.stepper.leave_out(batches, asks, waited)
        lr, decay = self.schedule.lr(at.fraction), self.schedule.decay(at.fraction)
        outcome = self.stepper.take(batches, at, lr, decay, asks, waited, coming.ready, steps)
        if self.alarm.trouble:
            self.keeper.finish()  # it may go back to what is being written, or behind it
        return None if self.alarm.act(at.step, self.keeper) else outcome

    def _count(self, epoch: Epoch, number: int, batches: list[PackedBatch], outcome: Outcome) -> None:
        """Bring `state` behind the step: the `number`-th of its epoch, from 0."""
        state = self.state
        if outcome.applied:
            self.bad.good()
        elif not outcome.refused:
            self.keeper.finish()  # the run may end here, and is to go on from the last checkpoint taken
            self.bad.bad(state.step, batches, outcome.finite)
        found = [hole for batch in batches for hole in batch.holes]
        try:
            self.holes.add(outcome.holes, found, state.step + 1, epoch.number, epoch.draws)
        except RunError:  # on every rank alike, and nothing is wrong with what was taken before
            self.keeper.finish()
            raise
        self.state = replace(
            state,
            step=state.step + 1,
            step_in_epoch=number + 1,
            draws=state.draws_at(epoch, number + 1),
            holes=self.holes.total,
            holes_this_epoch=self.holes.this_epoch,
            hole_reasons=dict(self.holes.reasons),
            skipped=self.bad.skipped,
            bad_in_a_row=self.bad.in_a_row,
            loss_spikes=self.alarm.loss_spikes,
            recent_losses=self.alarm.recent,
            collapsed_in_a_row=self.alarm.in_a_row,
        )

    def _log(self, at: Moment, done: float, values: dict[str, float], facts: dict[str, float]) -> None:
        """Log the step that began `at`, of a run that is `done` to that fraction, and what only the plan knows,
        `facts`."""
        state = self.state
        values |= {"lr": self.schedule.lr(at.fraction), "weight_decay": self.schedule.decay(at.fraction)}
        # `leaps` is what metrics have called loss spikes from the beginning: a run that goes on has one curve of them.
        counts = {"skipped_steps": state.skipped, "leaps": state.loss_spikes, "epoch": at.epoch} | self.holes.counts
        self.session.tracker.log(state.step, values | counts | facts)
        self.session.progress.update(done, values)

    def _guard(self) -> None:
        """What is looked after at every step boundary."""
        every, step = self.recipe.guard.divergence_steps, self.state.step
        if every and step % every == 0:
            compare_replicas(self.world, self.objective.replicas(), step)
        WATCHDOG.beat(f"step {step + 1}")
        self.garbage.after_step(step)

    def _through(self, epoch: Epoch) -> bool:
        """Whether all steps of the whole epoch are taken, of which this is a block."""
        return epoch.last and self.state.step_in_epoch == epoch.end

    def _end(self, epoch: Epoch) -> bool:
        """An epoch's steps are taken: average and evaluate, then save where a checkpoint is due. False where the
        attempt ends in the evaluation: the next one begins with it."""
        state, recipe = self.state, self.recipe
        self._average()
        if self.at_epoch_end is not None:
            WATCHDOG.beat(f"the end of epoch {state.epoch + 1}")
            try:
                with self.engine.whole():
                    values = self.at_epoch_end(state.epoch, moment(state, epoch, recipe.epochs)) or {}
            except Preempted:
                self._leave(epoch)
                return False
            if values:
                self.session.tracker.log(state.step, values)
        last = state.epoch + 1 == recipe.epochs
        self.state = state.next_epoch(epoch.draws)
        self.holes.new_epoch()
        if not last:
            self._grow()
        keep = is_due(self.state.epoch, recipe.epochs, recipe.checkpoint.keep_every)
        if last or self.asked or keep:
            self._save(keep)
        return True

    def _grow(self) -> None:
        """At an epoch's border: take the newest generation of the set, where the run is told to."""
        growth = self.session.growth
        if growth is None or not self.recipe.plan.grow:
            return
        found = growth.newest(self.state.epoch, self.session.index)
        if found is not None:
            self.keeper.finish()
            if self.loader is not None:
                self.loader.close()  # its workers have the index of before
                self.loader = None
            self._take(found)
            self.bad.index = found.index
        self.state = replace(self.state, generation=self.session.index.fingerprint)

    def _go_on_with(self, generation: str) -> None:
        """Have the generation that a checkpoint is of. Raises GamutError."""
        if generation and generation != self.session.index.fingerprint:
            if self.session.growth is None:
                raise PlanError(
                    f"The checkpoint is of the shard set {generation}, which had grown by then: go on with the stage "
                    "that it was made by."
                )
            self._take(self.session.growth.open(generation))

    def _take(self, found: Generation) -> None:
        self.session.plans.close()
        self.session = replace(self.session, index=found.index, plans=found.plans)
        self.keeper.fingerprint = found.plans.fingerprint

    def _average(self) -> None:
        if self.objective.averages(self.state.epoch):
            self.objective.average(self.engine.weights())

    def _leave(self, epoch: Epoch) -> None:
        """Save, as the attempt ends here; the next one begins with what is left of the epoch, be it its evaluation."""
        if self._through(epoch):
            self._average()  # here, since there will be no other checkpoint of this step
        self._save()
        self.keeper.finish()

    def _save(self, keep: bool = False) -> None:
        WATCHDOG.beat(f"saving after step {self.state.step}")
        self.holes.sync()
        self.staged = self.state.step
        self.keeper.save(self.state, keep)
        WATCHDOG.beat(f"step {self.state.step + 1}")


def make_engine(objective: Objective, recipe: schema.Recipe, world: World, accumulation: int) -> Engine:
    """The engine that the recipe names, around the objective's model. accumulation: micro-batches a rank and step.

    Raises RecipeError where the engine cannot do what the recipe says.
    """
    if recipe.compute.compiles(world.device.type) or recipe.compute.activations != "keep":
        from gamut.train.blocks import prepare

        copies = [block for module in objective.copies() for block in objective.blocks(module)]
        said = prepare(objective.blocks(objective.model), copies, recipe.compute, world.device)
        if said and world.first:
            print(said, flush=True)
    # Imported here: each takes seconds, and a run needs one of them.
    if recipe.engine == "oss":
        from gamut.train.oss import Oss

        return Oss(objective, recipe, world)
    from gamut.train.config import stage_of

    if stage_of(recipe.deepspeed) == 3:
        from gamut.train.zero3 import Zero3

        return Zero3(objective, recipe, world, accumulation)
    from gamut.train.zero import Zero

    return Zero(objective, recipe, world, accumulation)


def stream_of(device: torch.device) -> Stream | None:
    """Where the next step is prepared while one is trained; on a CPU, which does one thing at a time, nowhere."""
    return Stream(device) if device.type == "cuda" else None


def too_large(recipe: schema.Recipe, error: Exception) -> str:
    """What to do where a GPU's memory is not enough."""
    packs = recipe.loader.per_forward
    fewer = (
        f"With loader.packs_per_forward={packs // 2} in place of {packs} a forward needs half, with the same results"
        if packs > 1
        else "A forward is of a single pack already: compute.activations=recompute needs less, or smaller packs"
    )
    return f"The GPU's memory is not enough ({str(error).split('. ')[0]}). {fewer}. The run goes on where it was saved."


def take(session: Session, number: int, step: int = 0) -> Epoch:
    """The plan of a step of an epoch and those after it, or on every rank the error of the one that could not get
    it."""
    epoch, problem = None, None
    WATCHDOG.beat(f"planning epoch {number}")
    try:
        session.index.require_sound()
        epoch = session.plans.take(number, step)
    except (GamutError, OSError) as error:
        problem = error
    session.world.agree(problem, f"get the plan of epoch {number}")
    assert epoch is not None
    return epoch


def announce(world: World, schedule: Schedule, state: State, epochs: int) -> None:
    """Print what the learning-rate rule came to, and where the run takes up."""
    if not world.first:
        return
    for note in schedule.notes:
        print(f"warning: {note}", flush=True)
    print(f"{schedule.batch:.1f} clips a step, peak learning rate {schedule.peak:.3g}", flush=True)
    if state.step:
        print(f"resuming after step {state.step}, epoch {state.epoch} of {epochs}", flush=True)
