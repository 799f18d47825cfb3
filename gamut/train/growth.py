"""A run whose shard set grows meanwhile: it may take the newest generation at each epoch's border (`plan.grow`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gamut import files
from gamut.errors import GamutError, RunError, ShardError
from gamut.plan import Catalogue, Clips
from gamut.recipe import cli
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.train.world import World

if TYPE_CHECKING:
    from gamut.data.ahead import Ahead

TAKEN = "generations.json"  # in the run folder: epoch -> fingerprint of the index that it was planned from


@dataclass(frozen=True)
class Generation:
    """A shard set as it is in one of its generations, and what a run plans of it."""

    index: Index
    plans: Ahead


class Growth:
    """Opens other generations of the run's shard set, for all ranks alike.

    Which one an epoch has is in the checkpoints of its steps. It is written into the run folder as well, before the
    epoch's first step, so that a run that goes back over a border takes the same one again.
    """

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        folder: Path,
        select: Callable[[Index], Clips | Catalogue],
        plan: Callable[[Index, Clips | Catalogue], Ahead],
    ) -> None:
        """select: the clips of an index that the run trains on; plan: their plans, once the node can hold them."""
        self.recipe, self.world, self.folder = recipe, world, folder
        self.select, self.plan = select, plan

    def newest(self, epoch: int, present: Index) -> Generation | None:
        """What the epoch is to be planned from; None where that is `present`. The epoch is planned by then.

        A newer generation that cannot be used, on any rank, is told of and left out. Raises RunError where the run
        folder cannot be written, and on every rank what is wrong with a generation that the epoch had before.
        """
        before = self._before(epoch)
        found, problem = None, None
        if before != present.fingerprint:
            try:
                found = self._open(before or self._agreed_newest(), present)
                if found is not None:
                    found.plans.take(epoch)
            except (GamutError, OSError) as error:
                problem = error
            if before:
                self.world.agree(problem, f"go on with the shards of epoch {epoch}")
            told = [one for one in self.world.gather(problem and str(problem)) if one]
            if told:
                if found is not None:
                    found.plans.close()
                found = None
                if self.world.first:
                    print(
                        f"warning: {present.folder} has grown, and epoch {epoch} goes on without what is new: "
                        f"{told[0]}",
                        flush=True,
                    )
        self._keep(epoch, (present if found is None else found.index).fingerprint)
        if found is not None and self.world.first:
            grown = f"from {len(present):,} to {len(found.index):,} clips"
            print(f"epoch {epoch}: {found.index.folder} has grown {grown}", flush=True)
        return found

    def open(self, generation: str) -> Generation:
        """The generation with this fingerprint. Raises GamutError."""
        index = open_sets(cli.require_sets(self.recipe), self.recipe.remote, began=generation)
        if index.fingerprint != generation:
            raise ShardError(
                f"{index.folder} is no longer what this run went on with: it has no generation {generation}. Restore "
                "its index, or begin a new run."
            )
        return Generation(index, self.plan(index, self.select(index)))

    def _before(self, epoch: int) -> str:
        """What the epoch was planned from when the run came to it before; empty where it did not."""
        found, problem = "", None
        if self.world.first:
            try:
                found = self._taken().get(str(epoch), "")
            except RunError as error:
                problem = error
        self.world.agree(problem, "read which shards the epochs had")
        return self.world.broadcast(found)

    def _agreed_newest(self) -> str:
        """The newest generation's fingerprint, as rank 0 finds it."""
        found = ""
        problem: Exception | None = None
        if self.world.first:
            try:
                found = open_sets(cli.require_sets(self.recipe), self.recipe.remote).fingerprint
            except (GamutError, OSError) as error:
                problem = error
        found = self.world.broadcast(found)
        if problem is not None:
            raise problem
        return found

    def _open(self, generation: str, present: Index) -> Generation | None:
        return None if generation in ("", present.fingerprint) else self.open(generation)

    def _taken(self) -> dict[str, str]:
        path = self.folder / TAKEN
        try:
            content = json.loads(path.read_bytes())
            files.require_digest(content)
            return dict(content["epochs"])
        except FileNotFoundError:
            return {}
        except (OSError, *files.UNSOUND) as error:
            raise RunError(
                f"{path} is damaged ({error}). Remove it: epochs that are taken again then have the newest shards."
            ) from error

    def _keep(self, epoch: int, generation: str) -> None:
        problem: Exception | None = None
        if self.world.first:
            try:
                taken = self._taken()
                if taken.get(str(epoch)) != generation:
                    content = files.with_digest({"epochs": taken | {str(epoch): generation}})
                    files.write_text(self.folder / TAKEN, json.dumps(content, indent=1))
            except OSError as error:
                problem = RunError(files.refusal(error, self.folder / TAKEN))
            except RunError as error:
                problem = error
        self.world.agree(problem, "note the shards of the epoch")
