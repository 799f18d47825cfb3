"""An epoch of a large set, planned a block at a time, in the memory of a block.

The epoch's order of shards and the draws of each are known from sums a shard. That order is cut into B blocks of
equally many draws (of each set of a mixture, so that proportions hold in all of them), each of which is planned as a
small set is: lanes, window, packing, crops, partners. The draws that a block cannot give a whole step are left to the
next one, each in its lane, so that only the epoch's last step is short.

    border = Border()
    for block in range(block_count(catalogue, policy)):
        plan, border = plan_block(catalogue, seed, epoch, policy, block, border)

A block depends on its number and on the border before it, and on nothing else that was planned.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np

from gamut.errors import PlanError
from gamut.plan.ascending import Ascending
from gamut.plan.catalogue import Catalogue, Held, in_blocks
from gamut.plan.clips import Clips
from gamut.plan.draws import Draws, parts_of
from gamut.plan.epoch import Epoch
from gamut.plan.lanes import Spread
from gamut.plan.planner import plan_draws, plan_epoch, plan_fingerprint
from gamut.plan.policy import Policy
from gamut.randomness import Purpose, key

BACK = 64  # draws before a block in which copies of its first clip are looked for, then twice as many, and so on
KEPT: dict[str, type] = {
    "place": np.int64,
    "draw": np.int32,
    "copies": np.int32,
    "turn": np.int32,
    "lane": np.int64,
}


def _none(name: str) -> np.ndarray:
    return np.zeros(0, KEPT[name])


@dataclass(frozen=True, eq=False)
class Border:
    """Where one block ends and the next begins: what the plan of a block needs of those before it. Of the draws that
    were left, lane after lane: their places in the catalogue, and `draw`, `copies` and `turn` as in `Draws`."""

    steps: int = 0  # of the epoch so far
    draws: int = 0  # in these steps
    place: np.ndarray = field(default_factory=lambda: _none("place"))  # int64 [k]
    draw: np.ndarray = field(default_factory=lambda: _none("draw"))  # int32 [k]
    copies: np.ndarray = field(default_factory=lambda: _none("copies"))  # int32 [k]
    turn: np.ndarray = field(default_factory=lambda: _none("turn"))  # int32 [k]
    lane: np.ndarray = field(default_factory=lambda: _none("lane"))  # int64 [k], ascending


def set_parts(catalogue: Catalogue, policy: Policy) -> list[int]:
    """Draws an epoch of each set of the mixture, or of the one set. Raises PlanError as `set_draws` does, and for a
    catalogue without clips."""
    if not len(catalogue):
        raise PlanError("There are no clips to plan: the shard set is empty, or the recipe's `subset` selects nothing.")
    if catalogue.source is None:
        return parts_of(np.array([len(catalogue)]), policy)
    there = np.bincount(catalogue.source, weights=catalogue.counts, minlength=len(policy.proportions))
    return parts_of(there.astype(np.int64), policy, mixture=True)


def block_count(catalogue: Catalogue, policy: Policy) -> int:
    """Blocks of an epoch: of about `block` draws or more each, of a step of full packs at least, and none without a
    draw, whatever rounding takes of a set's."""
    parts = set_parts(catalogue, policy)
    step = policy.packs * (policy.max_clips if policy.clips is None else policy.clips)
    return max(1, sum(parts) // max(policy.block, step, len(parts) + 1))


def plan_block(
    catalogue: Catalogue, seed: int, epoch: int, policy: Policy, block: int, border: Border, spread: Spread = map
) -> tuple[Epoch, Border]:
    """Plan a block of an epoch, given the border before it: its plan, and the border after it.

    Raises PlanError as `plan_epoch` does, for the clips of this block.
    """
    blocks = block_count(catalogue, policy)
    fingerprint = plan_fingerprint(catalogue, seed, policy) | {"epoch": str(epoch), "part": f"{block} of {blocks}"}
    drawn = draw_block(catalogue, seed, epoch, policy, block, blocks)
    drawn = Draws(*(np.concatenate([getattr(border, name), getattr(drawn, name)]) for name in Draws._fields))
    clips = catalogue.select(drawn.place)
    last = block + 1 == blocks
    planned, packs, sequence = plan_draws(
        catalogue, clips, drawn, seed, epoch, policy, policy.lanes, fingerprint, spread, border.lane, last
    )
    planned = replace(
        planned,
        block=block,
        blocks=blocks,
        first_step=border.steps,
        first_draw=border.draws,
        whole=sum(set_parts(catalogue, policy)),
    )
    left = sequence[packs.left]
    after = {name: getattr(drawn, name)[left] for name in Draws._fields}
    return planned, Border(planned.end, planned.draws_before(planned.end), **after, lane=packs.left_lane)


def draw_block(catalogue: Catalogue, seed: int, epoch: int, policy: Policy, block: int, blocks: int) -> Draws:
    """The draws of one of the epoch's blocks, by place. Those of all blocks are the epoch's, each once.

    Without weights a set is drawn in permutations of its shards, one after the other, across epochs; with weights each
    draw is independent. Either way the shards come in a random order, and each of them in as few blocks as can be.
    """
    places, numbers = [], []
    for number, (shards, draws) in enumerate(zip(catalogue.sets(), set_parts(catalogue, policy))):
        begin, end = draws * block // blocks, draws * (block + 1) // blocks
        if begin == end:
            continue
        if catalogue.mass is None:
            place, draw = _in_permutations(catalogue, shards, draws, seed, epoch, policy, begin, end)
        else:
            place, draw = _by_weight(catalogue, shards, draws, seed, epoch, policy, number, begin, end)
        places.append(place)
        numbers.append(draw)
    place = np.concatenate([_none("place"), *places])
    draw = np.concatenate([_none("draw"), *numbers]).astype(np.int32)
    if not _ascends(place):
        order = np.lexsort((draw, place))
        place, draw = place[order], draw[order]
    first = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]])) if len(place) else _none("place")
    copies = np.diff(np.append(first, len(place)))
    turn = np.arange(len(place)) - np.repeat(first, copies)
    return Draws(place, draw, np.repeat(copies, copies).astype(np.int32), turn.astype(np.int32))


def _ascends(place: np.ndarray) -> bool:
    """Whether no place comes twice, and all in order: what a permutation of shards gives once it is sorted."""
    return bool((place[1:] > place[:-1]).all())


def _shuffled(shards: np.ndarray, seed: int, number: int, policy: Policy) -> np.ndarray:
    """The shards in the order of a permutation."""
    if not policy.shuffle:
        return shards
    return shards[np.argsort(key(seed, number, shards, Purpose.ORDER_SHARDS), kind="stable")]


def _in_permutations(
    catalogue: Catalogue, shards: np.ndarray, draws: int, seed: int, epoch: int, policy: Policy, begin: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """(places, which copy in the epoch) of draws `begin` to `end` of the epoch's `draws`.

    Permutation p of a set of n clips is draws p * n to (p + 1) * n of the run, so an epoch goes on where the one before
    it ended.
    """
    counts = catalogue.counts[shards]
    n = int(counts.sum())
    first, last = epoch * draws + begin, epoch * draws + end
    places, numbers = [], []
    for number in range(first // n, -(-last // n)):
        order = _shuffled(shards, seed, number, policy)
        ends = np.cumsum(catalogue.counts[order])
        low, high = max(first - number * n, 0), min(last - number * n, n)
        some = slice(int(np.searchsorted(ends, low, side="right")), int(np.searchsorted(ends, high, side="left")) + 1)
        order, ends = order[some], ends[some]
        begins = ends - catalogue.counts[order]
        at = catalogue.first[order] - begins
        of_shards = np.argsort(order)
        place = _ranges((at + np.maximum(begins, low))[of_shards], (at + np.minimum(ends, high))[of_shards])
        places.append(place)
        numbers.append(np.full(len(place), number - epoch * draws // n, np.int32))
    return np.concatenate(places), np.concatenate(numbers)


def _ranges(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64: begin[0] to end[0], begin[1] to end[1], and so on."""
    counts = end - begin
    return np.repeat(end - np.cumsum(counts), counts) + np.arange(int(counts.sum()))


def _by_weight(
    catalogue: Catalogue,
    shards: np.ndarray,
    draws: int,
    seed: int,
    epoch: int,
    policy: Policy,
    number: int,
    begin: int,
    end: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(places, which copy in the epoch) of draws `begin` to `end` of the epoch's `draws` independent ones.

    The clips are laid end to end, each as long as its weight, shards in the epoch's order, and the draws are uniform
    numbers along that line, ascending: so each shard gets its multinomial number of draws, and is drawn from alone.
    """
    assert catalogue.mass is not None
    order = _shuffled(shards, seed, epoch, policy)
    ends = np.cumsum(catalogue.mass[order])
    line = _Line(catalogue, order, ends, Ascending(draws, seed, epoch, number))
    place = line.places(begin, end)
    # The first clip may have been drawn before: its copies go on counting.
    back, earlier = 0, np.zeros(0, np.int64)
    while back < begin and (earlier == place[0]).all():
        back = min(begin, max(BACK, 2 * back))
        earlier = line.places(begin - back, begin)
    first = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
    draw = np.arange(len(place)) - np.repeat(first, np.diff(np.append(first, len(place))))
    draw[place == place[0]] += int((earlier == place[0]).sum())
    return place, draw


@dataclass(frozen=True)
class _Line:
    """The clips of a set, laid end to end by weight, and the draws along that line."""

    catalogue: Catalogue
    order: np.ndarray  # int64 [shards]
    ends: np.ndarray  # float64 [shards], where each ends on the line
    drawn: Ascending

    def places(self, begin: int, end: int) -> np.ndarray:
        """int64 [end - begin]: places of the clips that these draws are of; copies of a clip side by side."""
        at = self.drawn.stretch(begin, end) * self.ends[-1]
        last = int(np.flatnonzero(np.diff(self.ends, prepend=0.0))[-1])  # rounding must lead past no weight
        which = np.minimum(np.searchsorted(self.ends, at, side="right"), last)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(which)) + 1, [len(which)]])
        parts = []
        for low, high in itertools.pairwise(edges.tolist()):
            shard = int(self.order[which[low]])
            first = int(self.catalogue.first[shard])
            weight = self.catalogue.weights(first, int(self.catalogue.first[shard + 1]))
            begins = self.ends[which[low] - 1] if which[low] else 0.0
            chosen = np.searchsorted(np.cumsum(weight), at[low:high] - begins, side="right")
            parts.append(first + np.minimum(chosen, int(np.flatnonzero(weight)[-1])))
        return np.concatenate(parts)


def first_plan(clips: Clips | Catalogue, seed: int, policy: Policy) -> Epoch:
    """The plan that a run begins with: of its first epoch, or of the first block of that which has a step."""
    if isinstance(clips, Clips) and in_blocks(len(clips), policy):
        clips = Held(clips)
    if not isinstance(clips, Catalogue):
        return plan_epoch(clips, seed, 0, policy)
    border, block = Border(), 0
    while True:
        plan, border = plan_block(clips, seed, 0, policy, block, border)
        if plan.steps:  # as the last one has
            return plan
        block += 1


def plan_in_blocks(catalogue: Catalogue, seed: int, epoch: int, policy: Policy) -> list[Epoch]:
    """All blocks of an epoch, one after the other."""
    border, plans = Border(), []
    for block in range(block_count(catalogue, policy)):
        plan, border = plan_block(catalogue, seed, epoch, policy, block, border)
        plans.append(plan)
    return plans
