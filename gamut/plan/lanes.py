"""Lanes filled with packs, and the packs of all lanes laid out in steps."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gamut.plan.order import block_bounds
from gamut.plan.packing import Packed, exact_fill, next_fit
from gamut.plan.policy import Policy

BLOCK = 16384  # clips the exact packer plans at a time

Spread = Callable[[Callable[..., Any], Iterable[Any], Iterable[Any]], Iterable[Any]]  # `map`, or a pool's


class Packs(NamedTuple):
    """The packs of an epoch in the order of their numbers: pack p of step s is number s * P + p."""

    steps: int
    order: np.ndarray  # int64 [n], places in the sequence, pack after pack
    pack_offset: np.ndarray  # int64 [steps * P + 1], where each pack starts in `order`
    left: np.ndarray  # int64 [k], places in the sequence that no step has, lane after lane
    left_lane: np.ndarray  # int64 [k], their lanes


class Lane:
    """A lane's packs so far: places in the sequence, pack after pack, and the clips of each pack."""

    def __init__(self) -> None:
        self.order: list[np.ndarray] = []
        self.counts: list[np.ndarray] = []
        self.packs = 0

    def add(self, order: np.ndarray, counts: np.ndarray) -> None:
        self.order.append(order)
        self.counts.append(counts)
        self.packs += len(counts)


def fill_lanes(tokens: np.ndarray, bounds: np.ndarray, policy: Policy, spread: Spread = map) -> list[Lane]:
    """Pack every lane's stretch of the sequence. `tokens` int64 [n] in sequence; `bounds` int64 [lanes + 1].

    Packs of a number of clips, and next-fit, take a lane in order. The exact packer plans blocks of at most 16,384
    clips independently, at the price of about one pack in 3,000. The clips at the end of a lane that it cannot fit
    well, with too few left to choose from, are packed together with those of the other lanes, and these packs go to the
    shortest lanes, so that lanes end together. Where nodes keep to their own lanes (`locality: node`), each packs its
    own end. Lanes are independent up to that point: `spread` is `map`, or that of an executor, which distributes them.
    """
    if policy.tokens is None or policy.packer == "next_fit":
        return [_in_order(tokens, first, last, policy) for first, last in itertools.pairwise(bounds.tolist())]

    blocks = block_bounds(bounds, BLOCK)
    stretches = [tokens[first:last] for first, last in itertools.pairwise(bounds.tolist())]
    filled = spread(partial(_exactly, policy), stretches, [(edges - edges[0]).tolist() for edges in blocks])
    lanes = [Lane() for _ in blocks]
    ends: list[np.ndarray] = []
    for lane, first, packed in zip(lanes, bounds.tolist(), filled):
        lane.add(first + packed.order, packed.counts)
        ends.append(first + packed.left)

    left = np.concatenate(ends)
    packed = exact_fill(tokens[left], policy.tokens, policy.max_clips, policy.lookahead)
    shortest = [(lane.packs, number) for number, lane in enumerate(lanes)]
    heapq.heapify(shortest)
    at = 0
    for size in packed.counts.tolist():
        packs, number = heapq.heappop(shortest)
        lanes[number].add(left[packed.order[at : at + size]], np.array([size], np.int64))
        heapq.heappush(shortest, (packs + 1, number))
        at += size
    return lanes


def _exactly(policy: Policy, tokens: np.ndarray, edges: list[int]) -> Packed:
    """The packs of a lane of these clips, block after block, and the clips that are left over."""
    assert policy.tokens is not None
    packed = []
    for first, last in itertools.pairwise(edges):
        drain = last < edges[-1] or policy.locality == "node"
        block = exact_fill(tokens[first:last], policy.tokens, policy.max_clips, policy.lookahead, drain)
        packed.append((first + block.order, block.counts, first + block.left))
    return Packed(*(np.concatenate(parts) for parts in zip(*packed)))


def _in_order(tokens: np.ndarray, first: int, last: int, policy: Policy) -> Lane:
    lane = Lane()
    if policy.tokens is not None:
        counts = next_fit(tokens[first:last], policy.tokens, policy.max_clips).counts
    else:
        assert policy.clips is not None
        starts = np.arange(0, last - first, policy.clips, dtype=np.int64)
        counts = np.minimum(policy.clips, last - first - starts)
    lane.add(np.arange(first, last, dtype=np.int64), counts)
    return lane


def lay_out(lanes: list[Lane], packs: int, whole: bool = False) -> Packs:
    """Give each lane P / L packs of every step, in the lane's order; a lane that has run out gives empty packs.

    With `whole` there are only steps to which every lane gives all its packs, and what is in the others is `left`; a
    lane's last pack, which may be short, is never in one.
    """
    share = packs // len(lanes)
    if whole:
        steps = max(0, min((lane.packs - 1) // share for lane in lanes))
    else:
        steps = max(-(-lane.packs // share) for lane in lanes)
    counts = np.zeros(steps * packs, np.int64)
    source = np.zeros(steps * packs, np.int64)  # where a pack starts among the packs of all lanes, lane after lane
    placed = 0
    left, left_lane = [], []
    for number, lane in enumerate(lanes):
        mine = np.concatenate([np.zeros(0, np.int64), *lane.counts])
        given, more = mine[: steps * share], int(mine[steps * share :].sum())
        step, place = np.divmod(np.arange(len(given)), share)
        pack = step * packs + number * share + place
        counts[pack] = given
        source[pack] = placed + np.cumsum(given) - given
        placed += int(given.sum())
        left.append(np.arange(placed, placed + more))
        left_lane.append(np.full(more, number, np.int64))
        placed += more
    offset = np.concatenate([[0], np.cumsum(counts)])
    taken = np.repeat(source - offset[:-1], counts) + np.arange(offset[-1])
    order = np.concatenate([part for lane in lanes for part in lane.order])
    return Packs(steps, order[taken], offset, order[np.concatenate(left)], np.concatenate(left_lane))
