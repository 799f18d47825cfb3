"""How long each clip's views are, where they start, and how many tokens they make."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gamut.errors import PlanError
from gamut.plan.clips import Clips
from gamut.plan.policy import PATCH, TOKENS_A_PATCH_COLUMN, WINDOW_SAMPLES, Policy
from gamut.randomness import Purpose, integers, key


class Sizes(NamedTuple):
    """Of every clip, int64 [n] each; all views of a clip are alike."""

    shift: np.ndarray  # hop in samples
    frames: np.ndarray  # of a view, a multiple of 16
    tokens: np.ndarray  # of all views, class tokens included
    cut: int  # clips longer than `max_frames`


def samples_needed(frames: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Samples under `frames` frames at a hop of `shift` samples: (frames - 1) * shift + 400."""
    return (frames - 1) * shift + WINDOW_SAMPLES


def view_tokens(frames: np.ndarray, class_token: bool) -> np.ndarray:
    """Tokens of one view: 8 for every 16 frames, and the class token."""
    return frames // PATCH * TOKENS_A_PATCH_COLUMN + int(class_token)


def sizes(clips: Clips, seed: int, epoch: int, policy: Policy) -> Sizes:
    """Hop, frames and tokens of every clip in this epoch.

    A clip of n samples at hop h has T = 1 + (n - 400) // h frames, of which a view takes the next lower multiple of
    16, at least 16. Raises PlanError, naming the clip, where one is empty, is too long and may not be cut, or has
    more tokens than a pack.
    """
    if not len(clips):
        raise PlanError("There is no clip to plan: the shard set is empty, or the recipe's `subset` chooses nothing.")
    samples = clips.samples
    if samples.min() < 1:
        at = int(samples.argmin())
        raise PlanError(
            f"The clip in row {clips.row[at]} of the index has {samples[at]} samples and cannot be planned. "
            "Leave empty clips out when the shards are made: convert or index them again."
        )
    shift = np.full(len(clips), policy.shifts[0], np.int64)
    if len(policy.shifts) > 1:
        which = integers(key(seed, epoch, clips.clip_id, 0, 0, Purpose.SHIFT), 0, len(policy.shifts))
        shift = np.asarray(policy.shifts, np.int64)[which]
    own = np.maximum((1 + (samples - WINDOW_SAMPLES) // shift) // PATCH * PATCH, PATCH)

    cut = 0
    if policy.max_frames is not None:
        too_long = own > policy.max_frames
        cut = int(too_long.sum())
        if cut and policy.too_long == "error":
            at = int(own.argmax())
            raise PlanError(
                f"{cut} of {len(clips)} clips are over `max_frames`, {policy.max_frames}; the longest, in row "
                f"{clips.row[at]} of the index, has {own[at]} frames. Raise `max_frames`, or let them be cut with "
                "`too_long: cut`."
            )
    if policy.crop_frames is not None and policy.pad:
        frames = np.full(len(clips), policy.crop_frames, np.int64)
    else:
        limits = [limit for limit in (policy.crop_frames, policy.max_frames) if limit is not None]
        frames = np.minimum(own, min(limits)) if limits else own

    tokens = policy.views * view_tokens(frames, policy.class_token)
    if policy.tokens is not None and tokens.max() > policy.tokens:
        _over_budget(clips, frames, tokens, policy)
    return Sizes(shift, frames, tokens, cut)


def _over_budget(clips: Clips, frames: np.ndarray, tokens: np.ndarray, policy: Policy) -> None:
    assert policy.tokens is not None
    at, over = int(tokens.argmax()), int((tokens > policy.tokens).sum())
    fits = (policy.tokens // policy.views - int(policy.class_token)) // TOKENS_A_PATCH_COLUMN * PATCH
    shorter = f", or shorten the views to {fits} frames (`crop_frames` or `max_frames`)" if fits >= PATCH else ""
    raise PlanError(
        f"The clip in row {clips.row[at]} of the index makes {tokens[at]} tokens "
        f"({policy.views} x {frames[at]} frames), and {over} of {len(clips)} clips are over a pack's budget of "
        f"{policy.tokens}. Raise `tokens` of the step to at least {tokens[at]}{shorter}."
    )


def crops(
    clip_id: np.ndarray,
    draw: np.ndarray,
    samples: np.ndarray,
    shift: np.ndarray,
    frames: np.ndarray,
    seed: int,
    epoch: int,
    policy: Policy,
) -> tuple[np.ndarray, np.ndarray]:
    """(start, length), int64 [n, views], in samples: where each view starts and how many of its samples the clip has.

    A random start is uniform over all places where the view fits, drawn anew for each draw and view; a clip shorter
    than its view starts at 0 and is zero-padded.
    """
    needed = samples_needed(frames, shift)
    spare = np.maximum(samples - needed, 0)
    start = np.zeros((len(clip_id), policy.views), np.int64)
    if policy.random_crop:
        for view in range(policy.views):
            start[:, view] = integers(key(seed, epoch, clip_id, draw, view, Purpose.CROP), 0, spare + 1)
    length = np.repeat(np.minimum(samples, needed)[:, None], policy.views, axis=1)
    return start, length
