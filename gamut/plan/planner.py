"""From clips, a seed and a policy to an epoch: a pure function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gamut.errors import PlanError
from gamut.plan.balance import ALPHA, PARTNER, TEACHER
from gamut.plan.catalogue import Catalogue
from gamut.plan.clips import Clips
from gamut.plan.crops import crops, measure, samples_needed, segment_tokens, view_tokens
from gamut.plan.draws import Draws, draw_clips
from gamut.plan.epoch import Epoch
from gamut.plan.lanes import Packs, Spread, fill_lanes, lay_out
from gamut.plan.order import behind_kept, block_bounds, draw_keys, in_passes, lane_bounds, sequence, shuffle_blocks
from gamut.plan.partners import choose_partners, partner_frames, partner_tokens
from gamut.plan.policy import Policy


def plan_fingerprint(clips: Clips | Catalogue, seed: int, policy: Policy) -> dict[str, str]:
    """What decides a run's plans, by name: `index`, `weights` where clips have any, `seed`, `planner` and each field of
    the policy; of a catalogue, whose plans are made in blocks, also `block`.

    Two runs with equal fingerprints have equal plans; `differing` names the fields in which two differ.
    """
    large = isinstance(clips, Catalogue)
    weighted = clips.mass is not None if isinstance(clips, Catalogue) else clips.weight is not None
    weights = {"weights": clips.weights_fingerprint()} if weighted else {}
    blocks = {"block": str(policy.block)} if large else {}
    return {"index": clips.fingerprint(), **weights, "seed": str(seed), **policy.fields(), **blocks}


def plan_epoch(clips: Clips, seed: int, epoch: int, policy: Policy, spread: Spread = map) -> Epoch:
    """Plan an epoch: its draws (`draw_clips`; without weights, mixture or `draws` every clip once), in steps of packs,
    with their crops. `spread` packs the lanes: `map`, or that of a pool of processes, which gives the same plan.

    Raises PlanError where there are no clips, where one is empty, too long or over a pack's budget of tokens, or where
    a set of the mixture cannot be drawn from.
    """
    fingerprint = plan_fingerprint(clips, seed, policy) | {"epoch": str(epoch)}
    drawn = draw_clips(clips, seed, epoch, policy)
    return plan_draws(clips, drawn_of(clips, drawn), drawn, seed, epoch, policy, policy.lanes, fingerprint, spread)[0]


def plan_evaluation(clips: Clips, policy: Policy) -> Epoch:
    """Plan an evaluation: every clip once, in index order over steps and packs, its first crop, neither mixed
    nor rolled, with all its tokens.

    Packs have the policy's size, filled in order; the last step is completed with empty packs, so that all ranks run
    equally many forwards. Raises PlanError as `plan_epoch`, and where the policy draws the hop or the pooling, since a
    score is at one resolution.
    """
    for field, several in (("hops", policy.hops), ("pools", policy.pools)):
        if len(several) > 1:
            raise PlanError(
                f"An evaluation has one resolution, but `{field}` has {len(several)} values {several}. "
                "Evaluate at each in turn."
            )
    policy = replace(policy, packer="next_fit", shuffle=False, random_crop=False, roll=0.0, drop_tokens=0.0, mixup=0.0)
    policy, clips = (
        replace(policy, hidden=0.0, clones=1, mixtures=0.0, draws=None, proportions=()),
        replace(clips, weight=None, source=None),
    )
    fingerprint = plan_fingerprint(clips, 0, policy) | {"epoch": "evaluation"}
    return plan_draws(clips, clips, draw_clips(clips, 0, 0, policy), 0, 0, policy, 1, fingerprint)[0]


def drawn_of(whole: Clips, drawn: Draws) -> Clips:
    """The clips of the draws, a row a draw."""
    once = len(drawn.place) == len(whole) and not drawn.repeated
    return whole if once else whole.select(drawn.place)


def plan_draws(
    whole: Clips | Catalogue,
    clips: Clips,
    drawn: Draws,
    seed: int,
    epoch: int,
    policy: Policy,
    lanes: int,
    fingerprint: dict[str, str],
    spread: Spread = map,
    kept: np.ndarray | None = None,
    last: bool = True,
) -> tuple[Epoch, Packs, np.ndarray]:
    """Pack draws and cut their crops: (the plan; its packs; int64 [n], the draws in the order of the packs' sequence).

    Args:
        whole: what partners are chosen from; clips: of the draws, a row a draw.
        kept: int64 [m], ascending, the lanes of the first m draws, which keep to them; the others get lanes by the
            order of the epoch.
        last: whether these are the epoch's last draws; else its steps are whole and some draws are left (`lay_out`).
    """
    size = measure(clips, seed, epoch, policy, drawn.draw)
    keys = draw_keys(clips, drawn, seed, epoch)
    in_sequence = sequence(clips, keys.lane, seed, epoch, policy)
    if kept is not None and len(kept):
        in_sequence, bounds = behind_kept(in_sequence, size.tokens, kept, policy, lanes)
    else:
        bounds = lane_bounds(size.tokens[in_sequence], policy, lanes)
    windows = block_bounds(bounds, policy.window)
    if policy.shuffle:
        in_sequence = in_passes(in_sequence, bounds, keys.time, drawn.copies, clips, policy)
        in_sequence = shuffle_blocks(in_sequence, keys.time, windows, clips.source)
    packs = lay_out(fill_lanes(size.tokens[in_sequence], bounds, policy, spread), policy.packs, whole=not last)
    order = in_sequence[packs.order]
    del keys  # columns of all draws: what is not needed any more makes room

    clip_id = clips.clip_id[order]
    draw = drawn.draw[order]
    hop, pool, frames, tokens = (of[order] for of in (size.hop, size.pool, size.frames, size.tokens))
    cut = size.cut
    del size
    needed = samples_needed(frames, hop[:, None], pool[:, None])
    start, length = crops(clip_id, draw, clips.samples[order], needed, seed, epoch, policy)
    partners = None
    if policy.mixup or policy.mixtures:
        edges = np.concatenate([[0], *(lane[1:] for lane in windows)])
        place, sequenced, at = drawn.place[order], drawn.place[in_sequence], packs.order
        if policy.cached:  # the pack is the window
            sequenced, at, edges = place, np.arange(len(place)), packs.pack_offset
        partners = choose_partners(
            whole, clip_id, place, draw, needed, length, seed, epoch, policy, hop, pool, sequenced, at, edges
        )
    pack_tokens = _sum_packs(tokens, packs.pack_offset)
    squares = _sum_packs((segment_tokens(frames, policy) ** 2).sum(1), packs.pack_offset)
    pack_cost = pack_tokens + ALPHA * squares
    if policy.hidden or policy.clones > 1 or policy.mixtures:  # else the teacher's is in proportion
        heard = view_tokens(frames[:, : policy.views], policy)
        if policy.mixtures:
            assert partners is not None
            apart = partner_frames(partners.length, hop[:, None], pool[:, None])
            heard = np.concatenate([heard, partner_tokens(apart, policy)], axis=1)
        pack_cost += TEACHER * _sum_packs((heard + ALPHA * heard**2).sum(1), packs.pack_offset)
    if partners is not None:
        pack_cost += PARTNER * _sum_packs(np.where(partners.row >= 0, tokens, 0), packs.pack_offset)
    planned = Epoch(
        number=epoch,
        steps=packs.steps,
        packs=policy.packs,
        views=policy.segments,
        pack_offset=packs.pack_offset,
        pack_tokens=pack_tokens,
        pack_cost=pack_cost,
        row=clips.row[order],
        clip_id=clip_id,
        draw=draw,
        start=start,
        length=length,
        hop=np.repeat(hop.astype(np.int32)[:, None], policy.segments, axis=1),
        frames=frames.astype(np.int32),
        tokens=tokens,
        pool=np.repeat(pool.astype(np.int32)[:, None], policy.segments, axis=1) if max(policy.pools) > 1 else None,
        partner=None if partners is None else partners.row,
        partner_weight=None if partners is None else partners.weight,
        partner_start=None if partners is None else partners.start,
        partner_length=None if partners is None else partners.length,
        local_views=policy.local_views,
        rolled=policy.roll > 0,
        budget=policy.tokens,
        pack_clips=policy.clips,
        cut=cut,
        fingerprint=fingerprint,
    )
    return planned, packs, in_sequence


def _sum_packs(values: np.ndarray, pack_offset: np.ndarray) -> np.ndarray:
    """int64 [packs]: sums of int64 [n] over each pack; 0 for an empty one."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[pack_offset])
