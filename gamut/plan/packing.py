"""Clips into packs under a budget of tokens: in order, or filled exactly.

Both packers see clips only as token counts in order of arrival and hold no state between calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NEARLY = 640  # a pack is full where less than 1 / NEARLY of its budget is free


class Packed(NamedTuple):
    """Packs of clips, one after the other: pack i takes the next `counts[i]` entries of `order`."""

    order: np.ndarray  # int64 [packed clips], places in the tokens that were given
    counts: np.ndarray  # int64 [packs], clips a pack
    left: np.ndarray  # int64 [k], places that were not packed, oldest first; empty unless asked for


def next_fit(tokens: np.ndarray, budget: int, max_clips: int) -> Packed:
    """In order (ElasticAST, section 3.1): a pack closes when the next clip does not fit, or at `max_clips` clips.

    `tokens` int64 [n], each from 1 to `budget`.

    >>> next_fit(np.array([5, 4, 3, 6]), budget=10, max_clips=64).counts
    array([2, 2])
    """
    n = len(tokens)
    ends = np.concatenate([[0], np.cumsum(tokens)])
    stop = np.searchsorted(ends, ends[:-1] + budget, side="right") - 1  # of a pack that starts here
    following = np.minimum(stop, np.arange(n) + max_clips).tolist()
    counts, at = [], 0
    while at < n:
        counts.append(following[at] - at)
        at = following[at]
    return Packed(np.arange(n, dtype=np.int64), np.array(counts, np.int64), np.zeros(0, np.int64))


def exact_fill(tokens: np.ndarray, budget: int, max_clips: int, lookahead: int, drain: bool = True) -> Packed:
    """Fill each pack as full as `lookahead` clips of choice allow, staying close to the order of arrival.

    A pack takes the oldest waiting clip, then the subset of the next clips that fills the rest best; among equally
    full ones, the subset of the oldest clips. A pack with less than 1/640 of the budget free is full: one class token a
    clip makes most sums unreachable, and the search for the last token would go through every clip of every pool. The
    pool to choose from reaches `lookahead` clips beyond those that would fit in order. Since the oldest clip always
    goes, none waits for more packs than the pool had clips when it came. With `drain` False packing stops when the pool
    can no longer be filled, and the waiting clips are `left`.

    `tokens` int64 [n], each from 1 to `budget`. The set of reachable sums is a bitset in one Python integer, in units
    of the tokens' greatest common divisor: adding a clip is one shift and one or.

    >>> exact_fill(np.array([5, 4, 3, 6, 2]), budget=10, max_clips=64, lookahead=4).order
    array([0, 2, 4, 1, 3])
    """
    n = len(tokens)
    unit = int(np.gcd.reduce(tokens)) if n else 1
    size = (tokens // unit).tolist()
    room = budget // unit
    slack = budget // NEARLY // unit
    order: list[int] = []
    counts: list[int] = []
    pool: list[int] = []  # waiting clips, oldest first
    waiting: list[int] = []  # their tokens: looked up once, since every pack goes through them
    came = 0
    while True:
        fits, total = 0, 0
        for each in waiting:
            total += each
            if total > room or fits == max_clips:
                break
            fits += 1
        else:
            while fits < max_clips and came < n:
                pool.append(came)
                waiting.append(size[came])
                total += size[came]
                came += 1
                if total > room:
                    break
                fits += 1
        more = min(fits + lookahead - len(pool), n - came)
        if more > 0:
            pool.extend(range(came, came + more))
            waiting.extend(size[came : came + more])
            came += more
        if not pool or (not drain and len(pool) < fits + lookahead):
            break

        capacity = room - waiting[0]
        chosen = _fill(waiting, capacity, slack)
        if len(chosen) >= max_clips:
            chosen = _fill_counted(waiting, capacity, slack, max_clips - 1)
        order.append(pool[0])
        order += [pool[i] for i in reversed(chosen)]
        counts.append(len(chosen) + 1)
        for i in chosen:  # newest first, so that the places of the others hold
            del pool[i], waiting[i]
        del pool[0], waiting[0]
    return Packed(np.array(order, np.int64), np.array(counts, np.int64), np.array(pool, np.int64))


def _fill(waiting: list[int], capacity: int, slack: int) -> list[int]:
    """Places (newest first) of the clips after the first whose tokens come nearest to `capacity` from below; the first
    that come within `slack` of it will do."""
    full = (1 << (capacity + 1)) - 1
    goal = full ^ (full >> (slack + 1))
    reach = 1
    states = [1]  # states[i]: sums reachable with clips 1 .. i
    if capacity:
        for size in waiting[1:]:
            reach |= (reach << size) & full
            states.append(reach)
            if reach & goal:  # full: younger clips are not needed
                break
    return _trace(states, waiting, reach.bit_length() - 1, 0)


def _fill_counted(waiting: list[int], capacity: int, slack: int, limit: int) -> list[int]:
    """`_fill` with at most `limit` clips; of equally full choices from the same clips the one that takes the most.

    The bitset has one row for each number of clips, `stride` bits apart; a row's upper half catches sums over the
    capacity, which are masked away before they could reach the next row.
    """
    stride = 2 * capacity + 1
    full = (1 << (capacity + 1)) - 1
    columns = sum(1 << (count * stride) for count in range(limit + 1))
    mask = columns * full
    goal = columns * (full ^ (full >> (slack + 1)))
    reach = 1
    states = [1]
    for size in waiting[1:]:
        if size <= capacity:
            reach |= (reach << (stride + size)) & mask
        states.append(reach)
        if reach & goal:
            break
    rows = [(((reach >> (count * stride)) & full).bit_length() - 1, count) for count in range(limit + 1)]
    best, count = max(rows)
    return _trace(states, waiting, count * stride + best, stride)


def _trace(states: list[int], waiting: list[int], target: int, stride: int) -> list[int]:
    """Walk back from a reachable sum: the clip that first made it reachable is the newest of the oldest subset."""
    chosen: list[int] = []
    end = len(states) - 1
    while target:
        while (states[end - 1] >> target) & 1:  # clip `end` was not needed for it; states[0] reaches 0 alone
            end -= 1
        chosen.append(end)
        target -= stride + waiting[end]
        end -= 1
    return chosen
