"""What every stage does around its training: data, ranks, run folder, tracker, progress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gamut.data.ahead import Ahead
from gamut.data.remote import cache_needed, require_cache
from gamut.plan import Clips
from gamut.recipe.policy import training_policy
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.track.progress import NullProgress, Progress
from gamut.track.run import RunFolder
from gamut.track.tracker import NullTracker, Tracker
from gamut.train.checkpoint import saved
from gamut.train.lease import lease
from gamut.train.preempt import Preemption
from gamut.train.world import World


@dataclass(frozen=True)
class Session:
    """One run while it is open: its folder, held by us, and where its numbers go."""

    folder: Path
    plans: Ahead
    tracker: NullTracker
    progress: NullProgress
    preemption: Preemption  # entered: a signal counts from the moment the folder is ours


@contextlib.contextmanager
def session(recipe: Recipe, world: World, index: Index, clips: Clips) -> Iterator[Session]:
    """Hold the recipe's run folder, record this attempt, and close both however the run ends. All ranks enter it.

    `clips`: what the run trains on.

    The tracker closes as `finished` unless the body closed it otherwise, as `failed` on an exception.
    Raises RunError where another process holds the folder or it belongs to another recipe, ShardError where the node's
    cache is too small for a remote set.
    """
    if index.tars.is_remote:
        nodes = world.size // world.local_size if recipe.plan.locality == "node" else 1
        require_cache(index, cache_needed(index, clips, training_policy(recipe), nodes))
    folder = RunFolder.place(recipe)
    with Preemption() as preemption, lease(folder, world):
        problem: Exception | None = None
        tracker: NullTracker = NullTracker()
        progress: NullProgress = NullProgress()
        if world.first:
            try:
                run = RunFolder.open(recipe)
                facts = {"ranks": world.size, "device": str(world.device), "threads": world.threads}
                tracker = Tracker(run, recipe, index.fingerprint, facts)
                progress = Progress(recipe.run.name)
            except Exception as error:
                problem = error
        world.agree(problem, "open the run folder")
        lead = world.local_rank == 0
        policy = training_policy(recipe)
        with tracker, progress, Ahead(folder / "plan", clips, recipe.seed, policy, recipe.epochs, lead) as plans:
            plans.begin()
            yield Session(folder, plans, tracker, progress, preemption)


def begins(recipe: Recipe, world: World) -> bool:
    """Whether the run has no checkpoint to go on from, so that it starts with the weights of `init`: alike on every
    rank."""
    return world.broadcast(not saved(RunFolder.place(recipe) / "checkpoints"))
