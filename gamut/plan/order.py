"""The order in which an epoch takes the clips, and how that sequence is cut into lanes and blocks."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from gamut.plan.clips import Clips
from gamut.plan.draws import Draws
from gamut.plan.policy import Policy
from gamut.randomness import Purpose, key


def clip_keys(clips: Clips, seed: int, epoch: int) -> np.ndarray:
    """uint64 [n]: what shuffled clips are sorted by."""
    return key(seed, epoch, clips.clip_id, 0, 0, Purpose.ORDER_CLIPS)


class Keys(NamedTuple):
    """What n draws are sorted by, uint64 [n] each; all draws of a clip that comes once have equal keys."""

    lane: np.ndarray  # into which lane, where all are permuted together
    time: np.ndarray  # when within a lane


def draw_keys(clips: Clips, drawn: Draws, seed: int, epoch: int) -> Keys:
    """Keys of the draws (`clips` has a row a draw): uniform, and the times of a clip's copies are equally far apart.

    Copy j of m comes at (j + u) / m of its lane, u being the clip's own place in a permutation.
    """
    keys = clip_keys(clips, seed, epoch)
    if not drawn.repeated:
        return Keys(keys, keys)
    copies, turn = drawn.copies.astype(np.uint64), drawn.turn.astype(np.uint64)
    lane = key(seed, epoch, clips.clip_id, drawn.draw, 1, Purpose.ORDER_CLIPS)
    return Keys(lane, turn * (np.uint64(2**64 - 1) // copies) + keys // copies)


def sequence(clips: Clips, keys: np.ndarray, seed: int, epoch: int, policy: Policy) -> np.ndarray:
    """int64 [n]: places of the clips in the epoch's sequence, before lanes are cut.

    Shuffled: whole shards in a new order, each front to back, so that a lane streams its shards once; the sets of a
    mixture advance side by side, each at its own pace. A set of no more clips than the window is permuted altogether.
    Not shuffled: index order. Where a row is a draw, a clip's copies are adjacent (`in_passes` separates them).
    """
    if not policy.shuffle:
        return np.arange(len(clips), dtype=np.int64)
    if len(clips) <= policy.window:
        return np.argsort(keys, kind="stable")
    shards = np.flatnonzero(np.bincount(clips.shard))
    shuffled = key(seed, epoch, shards, Purpose.ORDER_SHARDS)
    of_set = np.zeros(len(shards), np.int32)
    if clips.source is not None:
        of_shard = np.zeros(int(shards[-1]) + 1, np.int32)
        of_shard[clips.shard] = clips.source
        of_set = of_shard[shards]
    rank = np.empty(int(shards[-1]) + 1, np.uint16 if len(shards) < 2**16 else np.int32)  # 16 bits sort by counting
    rank[shards[np.lexsort((shuffled, of_set))]] = np.arange(len(shards))
    order = np.argsort(rank[clips.shard], kind="stable")
    return order if clips.source is None else order[np.argsort(_progress(clips.source[order]), kind="stable")]


def _progress(group: np.ndarray) -> np.ndarray:
    """float64 [n]: of a sequence of groups, one after the other, how far through its group each place is, 0 to 1."""
    counts = np.bincount(group)
    return (np.arange(len(group)) - (np.cumsum(counts) - counts)[group] + 0.5) / counts[group]


def in_passes(
    order: np.ndarray, bounds: np.ndarray, time: np.ndarray, copies: np.ndarray, clips: Clips, policy: Policy
) -> np.ndarray:
    """int64 [n]: the sequence, each lane in passes.

    Where clips come more than once, a lane goes through the shards of a set in passes (2, or 4 where a clip of the set
    comes more than twice), and the copies of a clip come in different passes, or as far apart as they can. Draws that
    are permuted altogether are left to their times.
    """
    if len(order) <= policy.window or int(copies.max()) == 1:
        return order
    source = np.zeros(len(order), np.int32) if clips.source is None else clips.source
    sets = int(source.max()) + 1
    most = [int(copies[source == number].max(initial=1)) for number in range(sets)]
    bits = np.array([0 if m == 1 else 1 if m == 2 else 2 for m in most], np.uint64)[source]
    turn = (time >> np.uint64(1)) >> (np.uint64(63) - bits)  # in two shifts: one by 64 has no meaning
    lane = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    order = order[np.lexsort((turn[order], source[order], lane))]
    return order if sets == 1 else order[np.lexsort((_progress(lane * sets + source[order]), lane))]


def lane_bounds(tokens: np.ndarray, policy: Policy, lanes: int, has: np.ndarray | None = None) -> np.ndarray:
    """int64 [lanes + 1]: where each lane's stretch of the sequence starts, and the end of the last.

    `tokens` are those of the clips in sequence. Packs of a token budget: stretches of equal tokens, cut at clip
    boundaries. Packs of a number of clips: stretches of equally many whole packs, so that only the epoch's last pack
    can be short and no lane runs out early.

    `has` int64 [lanes]: tokens (or clips) that each lane has already; it gets so much less.
    """
    share = np.arange(lanes + 1, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(has)]) if has is not None else np.zeros(lanes + 1, np.int64)
    if policy.clips is not None:
        total = len(tokens) + int(before[-1])
        ends = np.minimum(share * -(-total // policy.clips) // lanes * policy.clips, total)
        bounds = np.clip(ends - before, 0, len(tokens))
    else:
        ends = np.cumsum(tokens)
        total = int(tokens.sum()) + int(before[-1])
        bounds = np.searchsorted(ends, share * total // lanes - before, side="right")
        bounds[[0, -1]] = 0, len(tokens)
    return np.maximum.accumulate(bounds).astype(np.int64)


def behind_kept(
    order: np.ndarray, tokens: np.ndarray, lane: np.ndarray, policy: Policy, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [n], the sequence; int64 [lanes + 1], where its lanes begin) where the first m draws keep to their lanes.

    Each lane begins with its own of them, then comes its stretch of the others. `order` int64 [n]: the sequence of
    all; `tokens` int64 [n], of each draw; `lane` int64 [m], ascending, of each that is kept.
    """
    m = len(lane)
    others = order[order >= m]
    kept = np.bincount(lane, minlength=lanes)
    has = kept if policy.clips is not None else np.bincount(lane, weights=tokens[:m], minlength=lanes).astype(np.int64)
    bounds = lane_bounds(tokens[others], policy, lanes, has)
    starts = np.concatenate([[0], np.cumsum(kept)])
    parts = [
        part
        for number in range(lanes)
        for part in (np.arange(*starts[number : number + 2]), others[slice(*bounds[number : number + 2])])
    ]
    return np.concatenate(parts), bounds + starts


def block_bounds(lanes: np.ndarray, window: int) -> list[np.ndarray]:
    """A lane's blocks, as int64 [blocks + 1] for each lane: the fewest of at most `window` clips, equal to within 1."""
    bounds = []
    for first, last in zip(lanes[:-1].tolist(), lanes[1:].tolist()):
        blocks = max(1, -(-(last - first) // window))
        bounds.append(first + (last - first) * np.arange(blocks + 1, dtype=np.int64) // blocks)
    return bounds


def shuffle_blocks(
    order: np.ndarray, keys: np.ndarray, blocks: list[np.ndarray], source: np.ndarray | None = None
) -> np.ndarray:
    """int64 [n]: the sequence with the clips of each block permuted among themselves, by their keys.

    With `source` (int32 [n], the set of each clip) the sets of a mixture are permuted each for itself and advance side
    by side, so that their proportions hold all through a block.
    """
    edges = np.concatenate([[0], *(lane[1:] for lane in blocks)])
    if source is None:
        shuffled, mine = np.empty_like(order), keys[order]
        for first, last in itertools.pairwise(edges.tolist()):  # several times faster than one sort by (block, key)
            shuffled[first:last] = order[first:last][np.argsort(mine[first:last], kind="stable")]
        return shuffled
    block = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    order = order[np.lexsort((keys[order], source[order], block))]
    return order[np.lexsort((_progress(block * (int(source.max()) + 1) + source[order]), block))]
