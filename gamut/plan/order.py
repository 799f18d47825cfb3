"""In which order an epoch takes the clips, and how that sequence is cut into lanes and blocks."""

from __future__ import annotations

import numpy as np

from gamut.plan.clips import Clips
from gamut.plan.policy import Policy
from gamut.randomness import Purpose, key


def clip_keys(clips: Clips, seed: int, epoch: int) -> np.ndarray:
    """uint64 [n]: what shuffled clips are sorted by."""
    return key(seed, epoch, clips.clip_id, 0, 0, Purpose.ORDER_CLIPS)


def sequence(clips: Clips, keys: np.ndarray, seed: int, epoch: int, policy: Policy) -> np.ndarray:
    """int64 [n]: places of the clips in the epoch's sequence, before lanes are cut.

    Shuffled: whole shards in a new order, each front to back, so that a lane streams its shards once; a set of no
    more clips than the window is permuted altogether. Not shuffled: index order.
    """
    if not policy.shuffle:
        return np.arange(len(clips), dtype=np.int64)
    if len(clips) <= policy.window:
        return np.argsort(keys, kind="stable")
    shards, which = np.unique(clips.shard, return_inverse=True)
    rank = np.empty(len(shards), np.int32)
    rank[np.argsort(key(seed, epoch, shards, Purpose.ORDER_SHARDS), kind="stable")] = np.arange(len(shards))
    return np.argsort(rank[which], kind="stable")


def lane_bounds(tokens: np.ndarray, policy: Policy, lanes: int) -> np.ndarray:
    """int64 [lanes + 1]: where each lane's stretch of the sequence starts, and the end of the last.

    `tokens` are those of the clips in sequence. Packs of a token budget: stretches of equal tokens, cut at clip
    boundaries. Packs of so many clips: stretches of equal whole packs, so that only the epoch's last pack can be short
    and no lane runs out early.
    """
    share = np.arange(lanes + 1, dtype=np.int64)
    if policy.clips is not None:
        packs = -(-len(tokens) // policy.clips)
        return np.minimum(share * packs // lanes * policy.clips, len(tokens))
    ends = np.cumsum(tokens)
    bounds = np.searchsorted(ends, share * int(ends[-1]) // lanes, side="right")
    bounds[0] = 0
    return bounds.astype(np.int64)


def block_bounds(lanes: np.ndarray, window: int) -> list[np.ndarray]:
    """A lane's blocks, as int64 [blocks + 1] for each lane: the fewest of at most `window` clips, equal to within 1."""
    bounds = []
    for first, last in zip(lanes[:-1].tolist(), lanes[1:].tolist()):
        blocks = max(1, -(-(last - first) // window))
        bounds.append(first + (last - first) * np.arange(blocks + 1, dtype=np.int64) // blocks)
    return bounds


def shuffle_blocks(order: np.ndarray, keys: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    """int64 [n]: the sequence with the clips of each block permuted among themselves."""
    edges = np.concatenate([[0], *(lane[1:] for lane in blocks)])
    block = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    return order[np.lexsort((keys[order], block))]
