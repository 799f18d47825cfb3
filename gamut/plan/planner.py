"""From clips, a seed and a policy to an epoch: a pure function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gamut.errors import PlanError
from gamut.plan.balance import ALPHA
from gamut.plan.clips import Clips
from gamut.plan.crops import crops, sizes
from gamut.plan.epoch import Epoch
from gamut.plan.lanes import fill_lanes, lay_out
from gamut.plan.order import block_bounds, clip_keys, lane_bounds, sequence, shuffle_blocks
from gamut.plan.policy import Policy


def plan_fingerprint(clips: Clips, seed: int, policy: Policy) -> dict[str, str]:
    """What decides a run's plans, by name: `index`, `seed`, `planner` and each field of the policy.

    Two runs with equal fingerprints have equal plans; `differing` names the fields in which two differ.
    """
    return {"index": clips.fingerprint(), "seed": str(seed), **policy.fields()}


def plan_epoch(clips: Clips, seed: int, epoch: int, policy: Policy) -> Epoch:
    """Plan an epoch: every clip once, in steps of packs, with its crops.

    Raises PlanError where there are no clips, where one is empty, too long or over a pack's budget of tokens.
    """
    fingerprint = plan_fingerprint(clips, seed, policy) | {"epoch": str(epoch)}
    return _plan(clips, seed, epoch, policy, policy.lanes, fingerprint)


def plan_evaluation(clips: Clips, policy: Policy) -> Epoch:
    """Plan an evaluation: every clip once, in index order over steps and packs, its first crop.

    Packs are of the policy's size, filled in order; the last step is made up of empty packs, so that all ranks run
    equal rounds. Raises PlanError as `plan_epoch`, and where the policy draws the hop between frames, since a score
    is at one resolution.
    """
    if len(policy.shifts) > 1:
        raise PlanError(
            f"An evaluation is at one resolution, but `shifts` has {len(policy.shifts)} hops {policy.shifts}. "
            "Evaluate each hop in turn."
        )
    policy = replace(policy, packer="next_fit", shuffle=False, random_crop=False)
    fingerprint = plan_fingerprint(clips, 0, policy) | {"epoch": "evaluation"}
    return _plan(clips, 0, 0, policy, 1, fingerprint)


def _plan(clips: Clips, seed: int, epoch: int, policy: Policy, lanes: int, fingerprint: dict[str, str]) -> Epoch:
    size = sizes(clips, seed, epoch, policy)
    keys = clip_keys(clips, seed, epoch)
    order = sequence(clips, keys, seed, epoch, policy)
    bounds = lane_bounds(size.tokens[order], policy, lanes)
    if policy.shuffle:
        order = shuffle_blocks(order, keys, block_bounds(bounds, policy.window))
    layout = lay_out(fill_lanes(size.tokens[order], bounds, policy), policy.packs)
    order = order[layout.order]

    clip_id = clips.clip_id[order]
    draw = np.zeros(len(order), np.int32)
    shift, frames, tokens = size.shift[order], size.frames[order], size.tokens[order]
    start, length = crops(clip_id, draw, clips.samples[order], shift, frames, seed, epoch, policy)
    pack_tokens = _sum_packs(tokens, layout.pack_offset)
    squares = _sum_packs(policy.views * (tokens // policy.views) ** 2, layout.pack_offset)
    return Epoch(
        number=epoch,
        steps=layout.steps,
        packs=policy.packs,
        views=policy.views,
        pack_offset=layout.pack_offset,
        pack_tokens=pack_tokens,
        pack_cost=pack_tokens + ALPHA * squares,
        row=clips.row[order],
        clip_id=clip_id,
        draw=draw,
        start=start,
        length=length,
        shift=np.repeat(shift.astype(np.int32)[:, None], policy.views, axis=1),
        frames=np.repeat(frames.astype(np.int32)[:, None], policy.views, axis=1),
        tokens=tokens,
        budget=policy.tokens,
        pack_clips=policy.clips,
        cut=size.cut,
        fingerprint=fingerprint,
    )


def _sum_packs(values: np.ndarray, pack_offset: np.ndarray) -> np.ndarray:
    """int64 [packs]: sums of int64 [n] over each pack; 0 for an empty one."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[pack_offset])
