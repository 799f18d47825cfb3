"""The main of a stage that trains: a dry run of what was typed, or the ranks that do it."""

from __future__ import annotations

import os
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from gamut.commands import command
from gamut.errors import CheckpointError
from gamut.preemption import PREEMPTION, Preempted
from gamut.recipe import cli
from gamut.recipe.find import STAGES
from gamut.recipe.schema import Recipe
from gamut.watchdog import WATCHDOG

if TYPE_CHECKING:
    from gamut.plan import Catalogue, Clips
    from gamut.shards import Index
    from gamut.train.world import World


class Work(ABC):
    """What a recipe comes to on a set of clips: one run, or several after each other.

    Made before the ranks meet, so that what cannot be done is refused at once: it raises a GamutError then.
    """

    def __init__(self, recipe: Recipe, index: Index) -> None:
        self.recipe, self.index = recipe, index

    @abstractmethod
    def first(self) -> tuple[Recipe, Clips | Catalogue, str]:
        """(recipe, clips to train on) of the first run, for a dry run, and what else that is to say."""

    def forecast(self, recipe: Recipe, ranks: int) -> list[tuple[str, str]]:
        """What a run of `recipe` would take on `ranks` of this machine's devices, as rows of the dry run's table."""
        return []

    def normalisation(self) -> tuple[float, float]:
        """(mean, std) of the log-mel."""
        return self.index.normalisation(self.recipe.front)

    @abstractmethod
    def run(self, world: World, mean: float, std: float) -> bool:
        """Train, on all ranks together; False where the work was preempted, saved and to be started again. It may raise
        Preempted as well, on all ranks, where nothing was to be saved."""


def main_of(stage: str) -> Callable[..., int]:
    """The command of a stage, which has a `Work` in `STAGES`."""

    @command
    def main(argv: list[str] | None = None) -> int:
        """Do what the recipe says that the command line names. 0: done; 75: preempted, to be started again."""
        with PREEMPTION:
            return run(sys.argv[1:] if argv is None else argv)

    def run(argv: list[str]) -> int:
        typed = cli.parse(stage, argv)
        with WATCHDOG.within(typed.recipe.run.timeout_seconds, "opening the shards"):
            return do(typed)

    def do(typed: cli.Command) -> int:
        from gamut.shards.joined import open_sets  # here: --help need not wait for torch
        from gamut.track.run import began_with
        from gamut.train.config import require_settings

        recipe = typed.recipe
        require_settings(recipe.deepspeed)
        index = open_sets(cli.require_sets(recipe), recipe.remote, began=began_with(recipe), later=not typed.dry_run)
        try:
            return do_with(index, typed)
        except Exception:
            index.require_sound()  # of a damaged index anything may come
            raise

    def do_with(index: Index, typed: cli.Command) -> int:
        from gamut.models.find import require_init
        from gamut.numbers import EXIT_PREEMPTED
        from gamut.track.run import RunFolder
        from gamut.train import world as ranks
        from gamut.train.preview import preview

        recipe = typed.recipe
        work: Work = pkgutil.resolve_name(STAGES[stage].work)(recipe, index)
        if typed.dry_run:
            first, clips, more = work.first()
            size, nodes = ranks.declared()
            rows = [] if "WORLD_SIZE" in os.environ else work.forecast(first, size)  # else the launcher knows better
            preview(first, clips, size, index=index, nodes=nodes, rows=rows, full=typed.full)
            print(more, end="\n" * bool(more), flush=True)
            try:
                require_init(recipe)
            except CheckpointError as error:
                print(f"warning: {error}", flush=True)
            return 0
        require_init(recipe)
        RunFolder.require_same(recipe)
        mean, std = work.normalisation()
        with WATCHDOG.resting():  # a compiler builds in it, and the ranks wait so long for each other and no longer
            world = ranks.start(recipe.run)
        WATCHDOG.beat("making the model")
        if index.has_grown and world.first:
            kept = "takes what is new at an epoch's border" if recipe.plan.grow else "goes on with them (plan.grow)"
            print(f"{index.folder} has grown since this run began with {len(index):,} clips: it {kept}.")
        try:
            done = work.run(world, mean, std)
        except Preempted:
            done = False
        ranks.stop()
        if world.first and not done:
            print("The same command goes on from where this one was stopped.", flush=True)
        return 0 if done else EXIT_PREEMPTED

    return main
