"""Partners: which draws are mixed, with which clip, at which weight (mixup as AST and ElasticAST have it), or at equal
power and heard apart by a teacher (mixtures, after SSLAM)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gamut.plan.catalogue import Catalogue
from gamut.plan.clips import Clips
from gamut.plan.crops import samples_needed, view_tokens, whole_frames
from gamut.plan.policy import Policy
from gamut.randomness import Purpose, integers, key, uniform

CHUNK = 65536  # draws whose weights are made together: bounds the memory


class Partners(NamedTuple):
    """Of n draws with V views each."""

    row: np.ndarray  # int64 [n], the partner's row in the index; -1: the draw stays as it is
    weight: np.ndarray | None  # float32 [n], lambda, of the draw itself; 1 without a partner; None: equal power
    start: np.ndarray  # int64 [n, V], where the partner's part begins, in samples of the partner
    length: np.ndarray  # int64 [n, V], samples of it: at most as many as the view has of its own clip


def beta_weights(keys: np.ndarray, beta: int) -> np.ndarray:
    """float32 [n]: a number from Beta(beta, beta) for each uint64 key.

    The beta-th smallest of 2 * beta - 1 uniform numbers has that distribution: no function is inverted, so the bits
    are the same everywhere.
    """
    weights = np.empty(len(keys), np.float32)
    number = np.arange(2 * beta - 1)
    for first in range(0, len(keys), CHUNK):
        part = uniform(key(keys[first : first + CHUNK, None], number))
        weights[first : first + CHUNK] = np.partition(part, beta - 1, axis=1)[:, beta - 1]
    return weights


def choose_partners(
    whole: Clips | Catalogue,
    clip_id: np.ndarray,
    place: np.ndarray,
    draw: np.ndarray,
    needed: np.ndarray,
    length: np.ndarray,
    seed: int,
    epoch: int,
    policy: Policy,
    hop: np.ndarray,
    pool: np.ndarray,
    sequence: np.ndarray,
    at: np.ndarray,
    edges: np.ndarray,
) -> Partners:
    """Partners of n draws, each mixed with probability `mixup` (or `mixtures`).

    A partner is any other clip, all equally likely: of the whole set, or where nodes keep to their own lanes
    (`locality: node`) of the draw's own window, whose shards its node reads anyway, and of `cached` features of its own
    pack. Its part starts where a view of
    the same length would (anywhere, or at 0 without random crops); a partner shorter than the view is used whole, but
    in mixtures cut to whole patches, since it is a view of its own for the teacher.

    Args:
        whole: the clips, by place. clip_id: uint64 [n], of the draws; place: int64 [n], theirs in `whole`; draw: which
            copy of the clip.
        needed, length: int64 [n, V], samples of each view, and those it has of its own clip.
        hop, pool: int64 [n], of the draws.
        sequence: int64, places in `whole` in the order of the epoch; at: int64 [n], where in it each draw stands.
        edges: int64 [windows + 1], where each window of `sequence` begins, and the end of the last.
    """
    n, views = needed.shape
    mixed = uniform(key(seed, epoch, clip_id, draw, 0, Purpose.MIXUP)) < (policy.mixup or policy.mixtures)
    near = policy.locality == "node" or policy.cached
    if near:
        window = np.searchsorted(edges, at, side="right") - 1
        first, count, own = edges[window], edges[window + 1] - edges[window], at
    else:
        first, count, own = np.zeros(n, np.int64), np.full(n, len(whole)), place
    mixed &= count > 1
    chosen = first + integers(key(seed, epoch, clip_id, draw, 0, Purpose.PARTNER), 0, np.maximum(count - 1, 1))
    chosen = np.minimum(chosen + (chosen >= own), first + count - 1)
    partner = sequence[chosen] if near else chosen
    mixed &= partner != place  # another copy of the same clip in the window

    row, samples = whole.lengths(partner)
    row = np.where(mixed, row, -1)
    weight = None
    if policy.mixup:
        weight = np.ones(n, np.float32)
        weight[mixed] = beta_weights(
            key(seed, epoch, clip_id[mixed], draw[mixed], 0, Purpose.MIX_WEIGHT), policy.mixup_beta
        )
    start = np.zeros((n, views), np.int64)
    if policy.random_crop:
        for view in range(views):
            spare = np.maximum(samples - needed[:, view], 0)
            crop = integers(key(seed, epoch, clip_id, draw, view, Purpose.PARTNER_CROP), 0, spare + 1)
            start[:, view] = np.where(mixed, crop, 0)
    part = np.where(mixed[:, None], np.minimum(samples[:, None], length), 0)
    if policy.mixtures:
        hop, pool = hop[:, None], pool[:, None]
        part = np.minimum(part, samples_needed(partner_frames(part, hop, pool), hop, pool))
    return Partners(row, weight, start, part)


def partner_frames(length: np.ndarray, hop: np.ndarray, pool: np.ndarray | int = 1) -> np.ndarray:
    """int64: frames of the views that a teacher hears of partners in mixtures, from their samples; 0 of none."""
    return np.where(length > 0, whole_frames(length, hop, pool), 0)


def partner_tokens(frames: np.ndarray, policy: Policy) -> np.ndarray:
    """int64, of the same shape: tokens of such views, which a teacher encodes besides the draws' own."""
    return np.where(frames > 0, view_tokens(frames, policy), 0)
