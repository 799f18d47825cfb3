"""A run while it is open: its folder, held by one process group alone, its plans, and where its numbers go."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from gamut import files
from gamut.data.ahead import Ahead
from gamut.data.remote import cache_needed, require_cache
from gamut.errors import RecipeError, RunError
from gamut.plan import Catalogue, Clips, Epoch
from gamut.plan.balance import rests
from gamut.preemption import PREEMPTION, Preemption
from gamut.progress import NullProgress, TrainingProgress
from gamut.recipe.policy import training_policy
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.track.run import LOCK, RunFolder
from gamut.track.tracker import NullTracker, Tracker
from gamut.train.copies import copies_of
from gamut.train.growth import Growth
from gamut.train.objective import Objective
from gamut.train.world import World
from gamut.watchdog import WATCHDOG


class Plans(Protocol):
    """Gives the plan of an epoch, or of the block of it that has a step (`gamut.data.ahead.Ahead`)."""

    fingerprint: dict[str, str]

    def take(self, number: int, step: int = 0) -> Epoch: ...

    def planned(self, number: int, block: int = 0) -> Epoch | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Forward:
    """How a step is split into forwards, and what is known of their cost."""

    packs: int  # joined in one forward
    peak_seconds: float = 0.0  # that a GPU would need for a token of a step at its peak; 0: not known


@dataclass(frozen=True)
class Session:
    """One run while it is open, as `open_session` gives it. Ranks but the first have nulls to track and show with."""

    recipe: Recipe
    world: World
    index: Index
    folder: Path
    plans: Plans
    tracker: NullTracker = field(default_factory=NullTracker)
    progress: NullProgress = field(default_factory=NullProgress)
    preemption: Preemption = PREEMPTION
    peak_seconds: float = 0.0  # as of `Forward`
    growth: Growth | None = None  # of a run that can go on with another generation of its set


@contextlib.contextmanager
def open_session(
    recipe: Recipe,
    world: World,
    index: Index,
    clips: Clips | Catalogue,
    forward: Forward,
    select: Callable[[Index], Clips | Catalogue] | None = None,
) -> Iterator[Session]:
    """Hold the recipe's run folder, record this attempt, and close both however the run ends. All ranks enter it.

    `clips`: what the run trains on; `forward`: whose packs the session's recipe then has in the place of auto;
    `select`: the clips of another generation of the set, where the run may go on with one.

    The tracker closes as `finished` unless the body closed it otherwise, as `failed` on an exception.
    Raises RecipeError where GPUs would never have a pack (other idle ranks are a warning), RunError where another
    process holds the folder or it belongs to another recipe, ShardError where the node's
    cache is too small for a remote set.
    """
    policy = training_policy(recipe)
    if waste := rests(recipe.step.packs, world.size):
        said = (
            f"A step has {recipe.step.packs} packs (step.packs), so {waste}. A dry run by launchers/slurm.py names "
            "what fits."
        )
        if recipe.step.packs < world.size and world.device.type == "cuda":
            raise RecipeError(said)
        if world.first:
            print(f"warning: {said}", flush=True)
    if world.first and (said := _slow_arithmetic(recipe.precision, world.device)):
        print(f"warning: {said}", flush=True)
    _require_cache(recipe, world, index, clips)
    WATCHDOG.beat("opening the run folder")
    folder = RunFolder.place(recipe)
    torch.manual_seed(recipe.seed + world.rank)  # nothing here draws from it, but what a user adds may
    with PREEMPTION, lease(folder, world):
        problem: Exception | None = None
        tracker: NullTracker = NullTracker()
        progress: NullProgress = NullProgress()
        if world.first:
            try:
                run = RunFolder.open(recipe)
                facts = {"ranks": world.size, "device": str(world.device), "threads": world.threads}
                facts["packs_per_forward"] = forward.packs
                facts |= _normalised(recipe, index)
                tracker = Tracker(run, recipe, index.fingerprint, facts)
                progress = TrainingProgress(recipe.run.name)
            except OSError as error:
                problem = RunError(f"{files.refusal(error, folder)} Make room in the run's folder, or mend its rights.")
            except Exception as error:
                problem = error
        world.agree(problem, "open the run folder")
        lead = world.local_rank == 0
        with tracker, progress, contextlib.ExitStack() as planned:

            def plan(index: Index, clips: Clips | Catalogue) -> Ahead:
                _require_cache(recipe, world, index, clips)
                ahead = Ahead(folder / "plan", clips, recipe.seed, policy, recipe.epochs, lead)
                return planned.enter_context(ahead)

            plans = plan(index, clips)
            plans.begin()
            settled = replace(recipe, loader=replace(recipe.loader, packs_per_forward=forward.packs))
            told = (plans, tracker, progress, PREEMPTION)
            growth = None if select is None else Growth(recipe, world, folder, select, plan)
            yield Session(settled, world, index, folder, *told, forward.peak_seconds, growth)


def _require_cache(recipe: Recipe, world: World, index: Index, clips: Clips | Catalogue) -> None:
    """Raise ShardError where the node's cache is too small for a remote set."""
    if index.tars.is_remote:
        nodes = world.size // world.local_size if recipe.plan.locality == "node" else 1
        require_cache(index, cache_needed(index, clips, training_policy(recipe), nodes))


@contextlib.contextmanager
def lease(folder: Path, world: World) -> Iterator[None]:
    """Hold the run folder (made if need be, mode 0700) while entered; rank 0 locks FOLDER/lock for all ranks.

    The lock is the kernel's (fcntl): it ends with the process, however that ends, and works between nodes on a
    network file system that has locks. Enter it before anything is written into the folder.

    Raises RunError on every rank, naming the holder's process and host, where another process holds it.
    """
    error: Exception | None = None
    with contextlib.ExitStack() as held:
        if world.first:
            try:
                held.enter_context(_locked(Path(folder)))
            except RunError as problem:
                error = problem
            except OSError as problem:
                error = RunError(
                    f"The run folder {folder} cannot be taken. {files.refusal(problem, folder)} Name another folder "
                    "with run.folder=, or mend this one."
                )
        world.agree(error, "take the run folder")
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Not inherited: a worker that outlives this process for a moment must not keep the next attempt out. Such a lock
    # goes when this process closes any descriptor of the file, so all is done through this one.
    with open(descriptor, "r+") as file, files.lock_open(descriptor, wait=False, inherited=False) as held:
        if not held:
            holder = file.read(200).strip() or "another process"
            raise RunError(
                f"The run folder {folder} is in use by {holder}. Wait for it to end or stop it, or give this run "
                "another name (run.name=...)."
            )
        file.truncate()
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        yield


def _slow_arithmetic(precision: str, device: torch.device) -> str:
    """What there is to say of bf16 on a CPU that has none; empty elsewhere."""
    if device.type != "cpu" or precision != "bf16" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ""
    return "This CPU has no bf16, and takes many times as long for it as for precision=fp32."


def _normalised(recipe: Recipe, index: Index) -> dict[str, float]:
    """What the log-mel is normalised by, also where the recipe leaves it to the set; {} where there is none."""
    if recipe.features or recipe.encoder:
        return {}
    return dict(zip(("front.mean", "front.std"), index.normalisation(recipe.front), strict=True))


def begin(objective: Objective, recipe: Recipe, world: World, init: str) -> bool:
    """Whether the run has no checkpoint to go on from, alike on every rank: then the objective takes the weights of
    `init`, unless that is empty."""
    copies = copies_of(recipe) if world.first else None
    saved = RunFolder(RunFolder.place(recipe)).checkpoints.saved() or (copies.saved() if copies else [])
    fresh = world.broadcast(not saved)
    if fresh and recipe.init:
        loaded = objective.start_from(init)
        if world.first:
            print(loaded, flush=True)
    return fresh
