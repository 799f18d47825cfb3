"""What every stage does around its training: data, ranks, run folder, tracker, progress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gamut.data.remote import cache_needed, require_cache
from gamut.errors import RecipeError, ShardError
from gamut.plan import Ahead, Clips
from gamut.recipe.policy import training_policy
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.subset import rows
from gamut.shards.weights import clip_weights
from gamut.track.progress import NullProgress, Progress
from gamut.track.run import RunFolder
from gamut.track.tracker import NullTracker, Tracker
from gamut.train.checkpoint import saved
from gamut.train.lease import lease
from gamut.train.preempt import Preemption
from gamut.train.world import World

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved; start again to go on


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


def select(index: Index, subset: Mapping[str, Any], weights: str = "") -> Clips:
    """The clips that the subset asks for, with weights where the recipe draws by weight (`plan.weights`).

    Raises ShardError where there are none, and as `gamut.shards.subset.rows` and `clip_weights` do.
    """
    clips = index.table()
    if subset or not len(clips):
        clips = clips.select(rows(index, subset))
    if weights:
        weight = clip_weights(index, clips.row, weights)
        clips = replace(clips, weight=weight).select(
            weight > 0
        )  # a clip that is never drawn is nobody's mixup partner either
    return clips


def statistics(recipe: Recipe, index: Index) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel: the recipe's, or those that `stats` wrote beside the shards."""
    front = recipe.front
    if (front.mean is None) != (front.std is None):
        raise RecipeError("front.mean and front.std belong together: set both, or neither to use the shards' own.")
    if front.mean is not None and front.std is not None:
        return front.mean, front.std
    found = index.statistics()
    if found is None:
        lacking = next(part.folder for part in index.parts if part.statistics() is None)
        raise ShardError(
            f"The recipe names no front.mean and front.std, and {lacking} has no statistics yet: run "
            f"`python -m gamut.shards stats {lacking}` once, or set both keys."
        )
    return found


def short_clips_warning(recipe: Recipe, clips: Clips) -> str:
    """A warning where more than 10 % of the clips are shorter than the crop, so that their views coincide; or ''."""
    frames = recipe.views.frames
    if frames is None or not recipe.views.random or not recipe.views.pad:
        return ""
    needed = (frames - 1) * 160 + 400
    share = float(np.mean(np.asarray(clips.samples) < needed))
    if share <= 0.10:
        return ""
    return (
        f"{share:.0%} of the clips are shorter than the crop of {frames} frames ({needed / 16_000:.2f} s): their crops "
        "are all the same, padded with zeros. A smaller views.frames gives them views of their own."
    )
