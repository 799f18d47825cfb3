"""What an epoch draws: every clip once, or by weight with replacement, or a share of each set of a mixture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gamut.errors import PlanError
from gamut.plan.clips import Clips
from gamut.plan.policy import Policy
from gamut.randomness import Purpose, key


class Draws(NamedTuple):
    """The multiset of an epoch, or of a block of one: N draws in the order of the table of clips; copies of a clip lie
    side by side."""

    place: np.ndarray  # int64 [N], ascending: places in the table of clips
    draw: np.ndarray  # int32 [N], which copy of its clip, from 0
    copies: np.ndarray  # int32 [N], how many copies of its clip there are
    turn: np.ndarray  # int32 [N], which of these it is: `draw`, but where a block has some of an epoch's copies

    @property
    def repeated(self) -> bool:
        """Whether a clip comes more than once."""
        return bool(len(self.copies)) and int(self.copies.max()) > 1


def set_draws(clips: Clips, policy: Policy) -> list[int]:
    """Draws an epoch of each set of the mixture (of the one set, where there is none), the same in every epoch.

    All sets together have `draws`, by default as many as there are clips. A set's part is its proportion of them;
    what rounding leaves goes to the largest remainders. Raises PlanError where a set has no clip, or so small a part
    that it would not be drawn.
    """
    if clips.source is None:
        return parts_of(np.array([len(clips)]), policy)
    return parts_of(np.bincount(clips.source, minlength=len(policy.proportions)), policy, mixture=True)


def parts_of(there: np.ndarray, policy: Policy, mixture: bool = False) -> list[int]:
    """`set_draws` where sets have so many clips, int64 [sets]."""
    total = int(there.sum()) if policy.draws is None else policy.draws
    if not mixture:
        return [total]
    if len(there) > len(policy.proportions) or not there.all():
        raise PlanError(
            f"A mixture of {len(policy.proportions)} sets needs clips of each; there are {there.tolist()}. Check the "
            "recipe's `subset`, or remove a set from its `mixture`."
        )
    share = np.array(policy.proportions) / sum(policy.proportions) * total
    parts = np.floor(share).astype(np.int64)
    parts[np.argsort(parts - share, kind="stable")[: total - parts.sum()]] += 1
    if not parts.all():
        raise PlanError(
            f"Set number {int(parts.argmin())} of the mixture gets none of the {total} draws an epoch at the "
            f"proportions {list(policy.proportions)}. Raise `draws` or its proportion."
        )
    return parts.tolist()


def draw_clips(clips: Clips, seed: int, epoch: int, policy: Policy) -> Draws:
    """The draws of an epoch: a function of the clips, the seed, the epoch and the policy, before anything is dealt.

    Without weights a set is drawn in permutations: where an epoch ends within one, the next epoch continues there, so
    every clip comes equally often in the long run, whatever `draws` is; a set that runs out starts a new permutation.
    With weights (a column of the clips) each draw is independent: a clip comes with probability weight / sum of its
    set's weights (AST's balanced sampling draws so). Raises PlanError as `set_draws` does.
    """
    n = len(clips)
    if not n or (clips.weight is None and clips.source is None and policy.draws in (None, n)):
        once, zeros = np.ones(n, np.int32), np.zeros(n, np.int32)
        return Draws(np.arange(n, dtype=np.int64), zeros, once, zeros)
    counts = np.empty(n, np.int64)
    for number, draws in enumerate(set_draws(clips, policy)):
        mine = slice(None) if clips.source is None else np.flatnonzero(clips.source == number)
        if clips.weight is None:
            counts[mine] = _permutations(clips.clip_id[mine], draws, seed, epoch)
        else:
            counts[mine] = _by_weight(clips.weight[mine], draws, seed, epoch, number)
    place = np.repeat(np.arange(n, dtype=np.int64), counts)
    first = np.cumsum(counts) - counts
    draw = (np.arange(len(place)) - first[place]).astype(np.int32)
    return Draws(place, draw, counts[place].astype(np.int32), draw)


def _permutations(clip_id: np.ndarray, draws: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [n]: how often each clip comes in draws [epoch * draws, (epoch + 1) * draws) of endless permutations."""
    n = len(clip_id)
    first, last = epoch * draws, (epoch + 1) * draws
    counts = np.full(n, last // n - first // n, np.int64)
    counts -= _first_of_pass(clip_id, first % n, seed, first // n)
    counts += _first_of_pass(clip_id, last % n, seed, last // n)
    return counts


def _first_of_pass(clip_id: np.ndarray, length: int, seed: int, number: int) -> np.ndarray:
    """int64 [n]: 1 for the clips among the first `length` of the permutation with this number."""
    chosen = np.zeros(len(clip_id), np.int64)
    if length:
        order = np.argsort(key(seed, number, clip_id, 0, 1, Purpose.DRAW), kind="stable")
        chosen[order[:length]] = 1
    return chosen


def _by_weight(weight: np.ndarray, draws: int, seed: int, epoch: int, number: int) -> np.ndarray:
    """int64 [n]: how often each clip comes in `draws` independent draws."""
    ends = np.cumsum(weight)
    keys = key(seed, epoch, number, np.arange(draws), 0, Purpose.DRAW)
    # All 53 bits that a double has, since 24 are too coarse to choose among millions; sorted, so that the search walks
    # through the table once (which draw is whose does not matter).
    at = np.sort((keys >> np.uint64(11)).astype(np.float64) * 2.0**-53) * ends[-1]
    last = int(np.flatnonzero(weight)[-1])  # rounding must not lead past the last clip that has a weight
    chosen = np.minimum(np.searchsorted(ends, at, side="right"), last)
    return np.bincount(chosen, minlength=len(weight))
