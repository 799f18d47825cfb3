"""What the plan gives a rank for a step, and the micro-batch that is followed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch
from gamut.data.reader import FeatureReader
from gamut.estimate.standin import Records, Sounds, sounds
from gamut.plan import Epoch, plan_epoch
from gamut.plan.balance import deal, idle
from gamut.recipe import schema
from gamut.recipe.policy import training_policy


@dataclass(frozen=True)
class Work:
    """Of a rank that has as much as any, in an epoch that was planned with a part of the clips."""

    epoch: Epoch
    sounds: Sounds
    ranks: int
    packs: int  # of a step, for a busy rank
    forwards: int  # A, micro-batches of a step
    micro: tuple[int, ...]  # packs of the micro-batch that is followed
    records: Records | None  # cached features, where the recipe trains on them

    @property
    def tokens(self) -> int:
        """Of that micro-batch."""
        return int(sum(self.epoch.pack_tokens[pack] for pack in self.micro))

    @property
    def clips(self) -> int:
        """Of that micro-batch."""
        offset = self.epoch.pack_offset
        return int(sum(offset[pack + 1] - offset[pack] for pack in self.micro))

    @property
    def busy(self) -> int:
        """Ranks that have a pack at all."""
        return min(self.ranks, self.epoch.packs)

    @property
    def tokens_a_step(self) -> float:
        """Of all ranks, the mean over the epoch."""
        return float(np.asarray(self.epoch.pack_tokens).sum() / self.epoch.steps)

    @property
    def clips_a_step(self) -> float:
        return self.epoch.draws / self.epoch.steps

    @property
    def scale(self) -> float:
        """What a busy rank has to do in a mean step, in micro-batches like the one that is followed."""
        return self.tokens_a_step * self.packs / self.epoch.packs / max(self.tokens, 1)

    @property
    def idle(self) -> float:
        """The share of the ranks' time that goes by without a pack."""
        return idle(self.epoch.packs, self.ranks)

    def batch(self) -> PackedBatch:
        """The micro-batch, of noise, as the loader gives it."""
        reader: Any = self.sounds
        if self.records is not None:
            reader = FeatureReader(reader, self.records)
        return assemble(reader, self.epoch, self.micro)

    def first(self, most: int) -> Work:
        """The same with a micro-batch of its first draws."""
        epoch, pack = self.epoch, self.micro[0]
        begin = int(epoch.pack_offset[pack])
        end = min(begin + most, int(epoch.pack_offset[pack + 1]))
        arrays = {field.name: getattr(epoch, field.name) for field in dataclasses.fields(epoch)}
        one: dict[str, Any] = {
            name: value[begin:end]
            for name, value in arrays.items()
            if isinstance(value, np.ndarray) and not name.startswith("pack_")
        }
        one["pack_offset"] = np.array([0, end - begin])
        one["pack_tokens"] = np.array([int(one["tokens"].sum())])
        one["pack_cost"] = one["pack_tokens"].astype(np.float64)
        return replace(self, epoch=replace(epoch, steps=1, packs=1, **one), micro=(0,))


def work_of(recipe: schema.Recipe, ranks: int, clips: int | None = None) -> Work:
    """Plan a first epoch with a part of the clips, and deal its middle step to the ranks. clips: of the set, where it
    is not on this machine but known. Raises PlanError as `plan_epoch`."""
    found = sounds(recipe, clips)
    epoch = plan_epoch(found.clips, recipe.seed, 0, training_policy(recipe))
    per_forward = recipe.loader.per_forward
    step = (epoch.steps - 1) // 2  # never the last, which may be short
    cost = np.asarray(epoch.pack_cost[step * epoch.packs : (step + 1) * epoch.packs])
    dealt = deal(cost, ranks, per_forward)
    packs = -(-epoch.packs // ranks)
    micro = tuple(step * epoch.packs + int(pack) for pack in dealt[0][0] if pack >= 0)
    records = Records.of(recipe) if recipe.features else None
    return Work(epoch, found, ranks, packs, -(-packs // per_forward), micro, records)
