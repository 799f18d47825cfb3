"""Which rank runs which pack: longest first, equally many packs a rank."""

from __future__ import annotations

import heapq

import numpy as np

from gamut.errors import PlanError

# Cost of a segment of n tokens, in tokens: n + ALPHA * n ** 2. A transformer layer of width D does 24 D^2 multiply-adds
# a token in its matrices and 4 n D in attention, so ALPHA = 1 / (6 D); here for ViT-B, D = 768 (11 % at 496 tokens).
ALPHA = 1 / 4608

# Cost of a partner, of mixup or in mixtures, as a share of the clip's tokens: it is decoded, sent to the device and
# added; the transformer that is trained never sees it.
PARTNER = 0.02

# Cost of a token that a teacher encodes, of one that is trained on: a forward alone.
TEACHER = 1 / 3

WASTE = 0.05  # of the ranks' time: more is worth a warning


def deal(cost: np.ndarray, world: int, per_forward: int, nodes: int = 1, neighbours: bool = False) -> np.ndarray:
    """Deal the packs of a step to ranks: int64 [world, A, per_forward], pack numbers within the step, -1 for none.

    `cost` is float64 [P]; A = ceil(P / (world * per_forward)). The costliest pack goes to the rank with the least so
    far that still has room, so all ranks have equally many packs (to within the unfilled places) and nearly equal cost
    (Graham 1969). A rank's packs come costliest first, so that simultaneous micro-steps cost the same. Deterministic:
    ties go to the lower pack and rank number.

    With `nodes` above 1 (`locality: node`) node i gets the packs of its own lanes, [i * P / nodes, (i + 1) * P /
    nodes), and they are dealt within the node. With `neighbours` the packs of a forward follow each other in the step,
    whichever rank takes them: what is computed of a pack then has the same bits at any number of ranks. Raises
    PlanError where nodes do not divide the packs or the ranks.
    """
    packs = len(cost)
    if neighbours:
        joined = np.arange(-(-packs // per_forward) * per_forward).reshape(-1, per_forward)
        joined[joined >= packs] = -1
        dealt = deal(np.append(cost, 0.0)[joined].sum(1), world, 1, nodes)
        return np.where(dealt < 0, -1, joined[dealt[..., 0]])
    if nodes > 1:
        if packs % nodes or world % nodes:
            raise PlanError(
                f"{nodes} nodes cannot share {packs} packs and {world} ranks equally, as `locality: node` needs. "
                "Choose `packs` and the number of ranks as multiples of the number of nodes, or `locality: none`."
            )
        share = packs // nodes
        parts = [deal(part, world // nodes, per_forward) for part in np.asarray(cost).reshape(nodes, share)]
        return np.concatenate([np.where(part < 0, -1, part + i * share) for i, part in enumerate(parts)])

    forwards = -(-packs // (world * per_forward))
    places = forwards * per_forward
    dealt = np.full((world, places), -1, np.int64)
    ranks = [(0.0, 0, rank) for rank in range(world)]  # cost so far, packs so far, rank
    for pack in np.argsort(-np.asarray(cost, np.float64), kind="stable").tolist():
        load, held, rank = heapq.heappop(ranks)
        dealt[rank, held] = pack
        if held + 1 < places:
            heapq.heappush(ranks, (load + float(cost[pack]), held + 1, rank))
    return dealt.reshape(world, forwards, per_forward)


def forwards(cost: np.ndarray, world: int, per_forward: int, nodes: int = 1, neighbours: bool = False) -> int:
    """How many of a step's A micro-batches are run: the ones after them are empty on every rank, as in the last step of
    an epoch. At least 1. As for `deal`; the cost of an empty pack is 0."""
    if cost.all():
        return -(-len(cost) // (world * per_forward))
    dealt = deal(cost, world, per_forward, nodes, neighbours)
    run = ((dealt >= 0) & (np.asarray(cost)[dealt] > 0)).any((0, 2))
    return int(np.flatnonzero(run).max(initial=0)) + 1


def idle(packs: int, ranks: int) -> float:
    """The share of all ranks' time without a pack, where a step has so many packs of like cost."""
    return 1.0 - packs / (ranks * -(-packs // ranks))


def rests(packs: int, ranks: int) -> str:
    """In words, where more than 5 % of the ranks' time goes by without a pack; else ""."""
    share = idle(packs, ranks)
    if share <= WASTE:
        return ""
    if packs < ranks:
        return f"only {packs} of {ranks} ranks ever have a pack"
    return f"{share:.0%} of the time of {ranks} ranks goes by without a pack"
