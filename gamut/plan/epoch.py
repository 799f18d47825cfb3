"""A planned epoch: flat arrays, in memory or mapped from a saved epoch (`gamut.data.plans`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gamut.numbers import PATCH
from gamut.plan.balance import forwards
from gamut.plan.crops import samples_needed

SCALARS = ("number", "steps", "packs", "views", "budget", "pack_clips", "cut", "local_views", "rolled")
ARRAYS: dict[str, type] = {
    "pack_offset": np.int64,
    "pack_tokens": np.int64,
    "pack_cost": np.float64,
    "row": np.int64,
    "clip_id": np.uint64,
    "draw": np.int32,
    "start": np.int64,
    "length": np.int64,
    "hop": np.int32,
    "frames": np.int32,
    "tokens": np.int64,
}
# Where an epoch is planned in blocks, which of it a plan is.
OF_BLOCKS = ("block", "blocks", "first_step", "first_draw", "whole")
# Arrays that only some policies need.
OPTIONAL: dict[str, type] = {
    "pool": np.int32,
    "partner": np.int64,
    "partner_weight": np.float32,
    "partner_start": np.int64,
    "partner_length": np.int64,
}


GROUPS = 16  # of steps, by which their number is forecast


class Forecast(NamedTuple):
    """Steps of an epoch: how many there are likely to be, between which numbers, and whether that is known exactly."""

    steps: int
    low: int
    high: int
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Epoch:
    """S steps of P packs; pack p of step s is number s * P + p; draws of pack k are rows pack_offset[k] :
    pack_offset[k + 1] of the arrays of draws. Times are in samples at 16 kHz.

    Where the epoch is planned in `blocks`, this is one of them: its S steps are `first_step` to `end` of the epoch, and
    steps are named by their number in the epoch.

    View v of draw i reads `length[i, v]` samples of its clip from `start[i, v]` (where the epoch is `rolled`, from the
    clip's end on at its beginning), zero-pads them to (frames * pool - 1) * hop + 400 samples, and makes `frames[i, v]`
    averages of `pool[i, v]` frames (None: of 1) at a hop of `hop[i, v]`. The last `local_views` of a draw's views are
    local crops.

    A draw with a mixup partner (`partner[i]` >= 0) is mixed, view by view, with `partner_length[i, v]` samples of that
    clip from `partner_start[i, v]`: weight * own + (1 - weight) * partner, each free of its mean. In mixtures, which
    have no weight, the partner is brought to the clip's power and added, and heard by a teacher as a view of its own
    of `partner_frames` (gamut/plan/partners.py).

    >>> epoch = plan_epoch(index.table(), 0, 3, policy)      # doctest: +SKIP
    >>> epoch.row[epoch.pack_offset[k] : epoch.pack_offset[k + 1]]      # doctest: +SKIP
    """

    number: int
    steps: int
    packs: int
    views: int
    pack_offset: np.ndarray  # int64 [S * P + 1]
    pack_tokens: np.ndarray  # int64 [S * P]
    pack_cost: np.ndarray  # float64 [S * P], tokens + alpha * sum of squared segment lengths
    row: np.ndarray  # int64 [n], row in the index
    clip_id: np.ndarray  # uint64 [n]
    draw: np.ndarray  # int32 [n], which copy of the clip in this epoch
    start: np.ndarray  # int64 [n, V]
    length: np.ndarray  # int64 [n, V]
    hop: np.ndarray  # int32 [n, V]
    frames: np.ndarray  # int32 [n, V], a multiple of 16
    tokens: np.ndarray  # int64 [n], of all views, class tokens included
    pool: np.ndarray | None = None  # int32 [n, V]; None: no averaging
    partner: np.ndarray | None = None  # int64 [n], row in the index, -1 for none; None: nothing is mixed
    partner_weight: np.ndarray | None = None  # float32 [n], lambda, 1 for none; None: equal power
    partner_start: np.ndarray | None = None  # int64 [n, V]
    partner_length: np.ndarray | None = None  # int64 [n, V]
    local_views: int = 0
    rolled: bool = False
    budget: int | None = None  # tokens a pack; None: packs of `pack_clips` clips
    pack_clips: int | None = None  # clips a pack; None: packs of a budget of tokens
    cut: int = 0  # clips that were over `max_frames` or `max_samples`
    fingerprint: Mapping[str, str] = field(default_factory=dict)  # what the plan was made from, field by field
    block: int = 0  # which of the epoch's blocks this is
    blocks: int = 1
    first_step: int = 0  # steps of the blocks before this one
    first_draw: int = 0  # draws in these steps
    whole: int | None = None  # draws of all blocks together; None: there is one

    @property
    def draws(self) -> int:
        """Draws of the whole epoch."""
        return len(self.row) if self.whole is None else self.whole

    @property
    def end(self) -> int:
        """The step of the epoch after the last one of this block."""
        return self.first_step + self.steps

    @property
    def last(self) -> bool:
        """Whether the epoch ends with this block."""
        return self.block + 1 == self.blocks

    @property
    def following(self) -> tuple[int, int]:
        """Number and block of the plan after this one."""
        return (self.number + 1, 0) if self.last else (self.number, self.block + 1)

    def forecast(self) -> Forecast:
        """Steps of the whole epoch, by this block.

        Exact where the epoch ends with it, and where packs have a number of clips. Else the draws that are left are
        divided by those of a mean step, give or take three standard errors of that mean, as groups of steps show it;
        and lanes may end a step apart.
        """
        rest = self.draws - self.draws_before(self.end)
        if self.pack_clips is not None and not self.last:
            steps = -(-self.draws // (self.packs * self.pack_clips))
            return Forecast(steps, steps, steps, True)
        if self.last:
            return Forecast(self.end, self.end, self.end, True)
        if not self.steps:  # it is known only that a pack has a clip or more
            return Forecast(self.end + -(-rest // self.packs), self.end + 1, self.end + rest)
        groups = np.array_split(np.diff(self.pack_offset[:: self.packs]), min(GROUPS, self.steps))
        means = np.array([group.mean() for group in groups])
        mean = len(self.row) / self.steps
        error = 3 * means.std(ddof=1) * math.sqrt((1 - 1 / self.blocks) / len(means)) if len(means) > 1 else mean / 2
        likely, fewest, most = (math.ceil(rest / each) for each in (mean, mean + error, max(mean - error, 1.0)))
        return Forecast(self.end + likely, self.end + fewest, self.end + most + 1)

    def packs_of(self, step: int) -> slice:
        """The numbers of the packs of a step of the epoch."""
        first = (step - self.first_step) * self.packs
        return slice(first, first + self.packs)

    def needed(self, draws: slice | np.ndarray) -> np.ndarray:
        """int64 [k, V]: samples of the views of some draws, padding included."""
        pool = 1 if self.pool is None else np.asarray(self.pool[draws], np.int64)
        frames, hop = np.asarray(self.frames[draws], np.int64), np.asarray(self.hop[draws], np.int64)
        return samples_needed(frames, hop, pool)

    def draws_before(self, step: int) -> int:
        """Draws of all steps of the epoch before this one, which is of this block or its `end`."""
        return self.first_draw + int(self.pack_offset[self.packs_of(step).start])

    def summary(self, world: int = 1, per_forward: int = 1) -> dict[str, float]:
        """What to know before these steps are run, on `world` ranks with `per_forward` packs a forward.

        `padding`: share of the token budget of non-empty packs that no token fills (0 without a budget). `waste`: share
        of the capacity of all packs that are run (`forwards`), empty ones included, that is unused: in tokens, or in
        clips where packs are of a number of clips. `silence`: share of the views' samples that is padding.
        `padded_short`: draws of under 16 frames. `shorter`: draws with less sound than their views. `cut`: draws over
        `max_frames` or `max_samples`. `mixed`: draws with a partner.
        """
        step_tokens = np.asarray(self.pack_tokens).reshape(self.steps, self.packs).sum(1)
        filled = int(np.count_nonzero(np.diff(self.pack_offset)))
        by_step = np.asarray(self.pack_cost).reshape(self.steps, self.packs)
        places = sum(forwards(cost, world, per_forward) for cost in by_step) * world * per_forward
        total = int(step_tokens.sum())
        needed = self.needed(slice(None))
        padded = np.asarray(self.length) < needed
        if self.budget is not None:
            padding, used, room = 1 - total / (filled * self.budget), total, places * self.budget
        else:
            assert self.pack_clips is not None
            padding, used, room = 0.0, len(self.row), places * self.pack_clips
        return {
            "steps": self.steps,
            "draws": len(self.row),
            "tokens": total,
            "tokens_step_mean": float(step_tokens.mean()),
            "tokens_step_max": int(step_tokens.max()),
            "draws_step_mean": len(self.row) / self.steps,
            "packs": filled,
            "empty_packs": self.steps * self.packs - filled,
            "padding": padding,
            "waste": 1 - used / room,
            "silence": 1 - float(np.asarray(self.length).sum() / needed.sum()),
            "shorter": int(padded.any(1).sum()),
            "padded_short": int((padded & (np.asarray(self.frames) == PATCH)).any(1).sum()),
            "cut": self.cut,
            "mixed": 0 if self.partner is None else int(np.count_nonzero(np.asarray(self.partner) >= 0)),
        }
