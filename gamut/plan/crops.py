"""How long each clip's views are, where they start, and how many tokens they make."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gamut.errors import PlanError
from gamut.numbers import HOP, PATCH, WINDOW, bands, columns, frames_of
from gamut.plan.clips import Clips
from gamut.plan.policy import Policy
from gamut.randomness import Purpose, integers, key, uniform


class Measures(NamedTuple):
    """The measures of n clips with V views each, the local ones last."""

    hop: np.ndarray  # int64 [n], in samples
    pool: np.ndarray  # int64 [n], frames averaged into one
    frames: np.ndarray  # int64 [n, V], after the averaging; a multiple of 16
    tokens: np.ndarray  # int64 [n], of all that the model encodes, class tokens included
    cut: int  # clips longer than `max_frames` or `max_samples`


def samples_needed(frames: np.ndarray, hop: np.ndarray, pool: np.ndarray | int = 1) -> np.ndarray:
    """Samples under `frames` averages of `pool` frames at a hop of `hop` samples: (frames * pool - 1) * hop + 400.

    >>> int(samples_needed(992, 160)), int(samples_needed(496, 160, 2))
    (158960, 158960)
    """
    return (frames * pool - 1) * hop + WINDOW


def whole_frames(samples: np.ndarray, hop: np.ndarray, pool: np.ndarray | int = 1) -> np.ndarray:
    """Frames of a view of so many samples that is not padded: the next lower multiple of 16, at least 16.

    >>> whole_frames(np.array([100, 16000]), np.array([160, 160]))
    array([16, 96])
    """
    return np.maximum((1 + (samples - WINDOW) // hop) // pool // PATCH * PATCH, PATCH)


def view_tokens(frames: np.ndarray, policy: Policy, hidden: float = 0.0) -> np.ndarray:
    """Tokens of views of these `frames`: 8 patches for every 16 frames (more where they overlap), less those that are
    dropped and the share `hidden` (`gamut.numbers.kept`), and the class and distillation tokens."""
    patches = columns(frames, policy.stride) * bands(policy.stride)
    for share in (policy.drop_tokens, hidden):
        if share:
            patches = patches - np.floor(patches * share).astype(np.int64)
    return patches + int(policy.class_token) + int(policy.distillation_token)


def segment_tokens(frames: np.ndarray, policy: Policy) -> np.ndarray:
    """int64 [n, clones * views + local views]: tokens of each segment that the model encodes of views of these `frames`
    [n, views + local views]. Local views are encoded once and whole."""
    tokens = view_tokens(frames, policy)
    seen = view_tokens(frames[:, : policy.views], policy, policy.hidden)
    return np.concatenate([np.tile(seen, policy.clones), tokens[:, policy.views :]], axis=1)


def frames_within(tokens: int, policy: Policy) -> int:
    """Frames of the longest view of at most `tokens` tokens, with no patches dropped: a multiple of 16, or 0.

    >>> frames_within(1 + 64 * 8, Policy(packs=1, clips=1))
    1024
    >>> frames_within(1 + 101 * 12, Policy(packs=1, clips=1, stride=10))
    1024
    """
    special = int(policy.class_token) + int(policy.distillation_token)
    most = (tokens - special) // bands(policy.stride)
    return max((frames_of(most + 1, policy.stride) - 1) // PATCH * PATCH, 0)  # one frame more is a column more


def measure(clips: Clips, seed: int, epoch: int, policy: Policy, draw: np.ndarray | int = 0) -> Measures:
    """Hop, pooling, frames and tokens of every clip in this epoch (`draw`: which copy of it, int [n]).

    A clip of n samples at hop h has T = 1 + (n - 400) // h frames, and T // p averages of p frames, of which a view
    takes the next lower multiple of 16, at least 16. Raises PlanError, naming the clip, where one is empty, is too
    long and may not be cut, or has more tokens than a pack.
    """
    if not len(clips):
        raise PlanError("There are no clips to plan: the shard set is empty, or the recipe's `subset` selects nothing.")
    samples = clips.samples
    if samples.min() < 1:
        at = int(samples.argmin())
        raise PlanError(
            f"The clip in row {clips.row[at]} of the index has {samples[at]} samples and cannot be planned. "
            "Leave empty clips out when the shards are made: convert or index them again."
        )
    if policy.cached:
        ones = np.ones(len(clips), np.int64)
        return Measures(ones * policy.hops[0], ones, ones[:, None] * PATCH, ones, 0)
    hop = _one_of(policy.hops, seed, epoch, clips.clip_id, draw, Purpose.HOP)
    pool = _one_of(policy.pools, seed, epoch, clips.clip_id, draw, Purpose.POOL)
    own, cut = _native(clips, hop, pool, policy)
    frames = np.empty((len(clips), policy.segments), np.int64)
    frames[:, : policy.views] = _global_frames(own, hop, pool, policy)[:, None]
    frames[:, policy.views :] = policy.local_frames if policy.pad else np.minimum(own, policy.local_frames)[:, None]

    tokens = segment_tokens(frames, policy).sum(1)
    if policy.tokens is not None and tokens.max() > policy.tokens:
        _over_budget(clips, frames, tokens, policy)
    return Measures(hop, pool, frames, tokens, cut)


def _one_of(
    values: tuple[int, ...], seed: int, epoch: int, clip_id: np.ndarray, draw: np.ndarray | int, purpose: Purpose
) -> np.ndarray:
    """int64 [n]: one of the values for each clip, all equally likely."""
    if len(values) == 1:
        return np.full(len(clip_id), values[0], np.int64)
    which = integers(key(seed, epoch, clip_id, draw, 0, purpose), 0, len(values))
    return np.asarray(values, np.int64)[which]


def _native(clips: Clips, hop: np.ndarray, pool: np.ndarray, policy: Policy) -> tuple[np.ndarray, int]:
    """(int64 [n], each clip's own frames within `max_samples`; how many clips are over that or `max_frames`)."""
    samples = clips.samples
    too_long = np.zeros(len(clips), bool)
    if policy.max_samples is not None:
        too_long = samples > policy.max_samples
        samples = np.minimum(samples, policy.max_samples)
    own = whole_frames(samples, hop, pool)
    if policy.max_frames is not None:
        too_long |= own > policy.max_frames
    cut = int(too_long.sum())
    if cut and policy.too_long == "error":
        at = int(np.where(too_long, clips.samples, 0).argmax())
        limits = {"`max_frames`": policy.max_frames, "`max_samples`": policy.max_samples}
        named = " or ".join(f"{name}, {limit}" for name, limit in limits.items() if limit is not None)
        raise PlanError(
            f"{cut} of {len(clips)} clips are over {named}; the longest, in row {clips.row[at]} of the index, has "
            f"{clips.samples[at]} samples, {own[at]} frames. Raise the limit, or let them be cut with `too_long: cut`."
        )
    return own, cut


def _global_frames(own: np.ndarray, hop: np.ndarray, pool: np.ndarray, policy: Policy) -> np.ndarray:
    """int64 [n]: frames of a view that is not local."""
    fixed = fixed_frames(hop, pool, policy)
    if fixed is not None:
        return fixed
    limits = [limit for limit in (policy.crop_frames, policy.max_frames) if limit is not None]
    return np.minimum(own, min(limits)) if limits else own


def fixed_frames(hop: np.ndarray, pool: np.ndarray, policy: Policy) -> np.ndarray | None:
    """Frames (int64, of hop's shape) that a view has however long its clip is; None where that decides.

    >>> fixed_frames(np.array([160, 320]), np.array([1, 1]), Policy(packs=1, clips=1, pad_to=1024))
    array([1024,  512])
    """
    if policy.pad_to is not None:
        return np.maximum(policy.pad_to * HOP // (hop * pool) // PATCH * PATCH, PATCH)
    if policy.crop_frames is not None and policy.pad:
        return np.full(hop.shape, policy.crop_frames, np.int64)
    return None


def _over_budget(clips: Clips, frames: np.ndarray, tokens: np.ndarray, policy: Policy) -> None:
    assert policy.tokens is not None
    at, over = int(tokens.argmax()), int((tokens > policy.tokens).sum())
    views = f"{policy.views * policy.clones} x {frames[at, 0]} frames"
    local = 0
    if policy.hidden:
        views += f" less {policy.hidden:.0%} of their patches"
    if policy.local_views:
        views += f" and {policy.local_views} x {frames[at, -1]}"
        local = int(view_tokens(frames[at, policy.views :], policy).sum())
    fits = frames_within((policy.tokens - local) // (policy.views * policy.clones), policy)
    shorter = f", or shorten the views to {fits} frames (`crop_frames` or `max_frames`)" if fits >= PATCH else ""
    raise PlanError(
        f"The clip in row {clips.row[at]} of the index makes {tokens[at]} tokens "
        f"({views}), and {over} of {len(clips)} clips are over a pack's budget of "
        f"{policy.tokens}. Raise `tokens` of the step to at least {tokens[at]}{shorter}."
    )


def crops(
    clip_id: np.ndarray,
    draw: np.ndarray,
    samples: np.ndarray,
    needed: np.ndarray,
    seed: int,
    epoch: int,
    policy: Policy,
) -> tuple[np.ndarray, np.ndarray]:
    """(start, length), int64 [n, V], in samples: where each view starts and how many of its samples the clip has.

    `needed` int64 [n, V]: samples of each view. A random start is uniform over all places where the view fits, drawn
    separately for each draw and view; a clip shorter than its view starts at 0 and is padded. Where the waveform is
    rolled before it is cut, all views of the draw start earlier by that amount, and wrap around the end of the clip.
    """
    start = np.zeros(needed.shape, np.int64)
    if policy.cached:
        return start, needed
    if policy.random_crop:
        for view in range(policy.segments):
            spare = np.maximum(samples - needed[:, view], 0)
            start[:, view] = integers(key(seed, epoch, clip_id, draw, view, Purpose.CROP), 0, spare + 1)
    if policy.roll:
        rolled = uniform(key(seed, epoch, clip_id, draw, 0, Purpose.ROLL_CHANCE)) < policy.roll
        by = np.where(rolled, integers(key(seed, epoch, clip_id, draw, 0, Purpose.ROLL_WAVE), 0, samples), 0)
        start = (start - by[:, None]) % samples[:, None]
    return start, np.minimum(samples[:, None], needed)
