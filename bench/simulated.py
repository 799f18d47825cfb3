"""Who reads which clip of a plan, and when: a job of any number of ranks followed in arrays, without one of its ranks.

The plan is a real one and `deal` deals it; what the code does with it (which worker gets a micro-batch, which shard a
reader still has open, which piece a node's cache still holds, how far the workers are ahead) is followed draw by draw.
Times are by assumptions (`Assumed`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.packing import mix
from gamut.data.reader import FILES
from gamut.data.remote import Pieces, cut_pieces
from gamut.numbers import RATE
from gamut.plan import Catalogue, Clips, Epoch, deal
from gamut.plan.balance import ALPHA
from gamut.randomness import key, uniform

NODE = 8  # ranks
CLIP = 10.0  # seconds of the clip by which speeds are given
UNASKED = "no plan of a made set asks for this: it has no weights, and is planned in one process"
POOL = 1 << 20  # lengths, of which each clip has one


class Made(Catalogue):
    """n clips that need no index: lengths, bytes and ids are functions of a clip's place. All shards are alike."""

    def __init__(self, clips: int, name: str, shard_clips: int, ratio: float, seed: int = 0) -> None:
        """name: of `bench.packing.MIXES`; ratio: bytes of FLAC by those of its samples."""
        self.told, self.seed, self.shard_clips, self.ratio = f"{clips} {name} {shard_clips}", seed, shard_clips, ratio
        self.first = np.append(np.arange(0, clips, shard_clips), clips).astype(np.int64)
        self.source = self.mass = None
        self._pool = mix(name, min(clips, POOL), seed).samples

    def select(self, places: np.ndarray) -> Clips:
        rows, samples = self.lengths(places)
        return Clips(rows, self._keys(rows), rows // self.shard_clips, samples, self.sizes(rows))

    def lengths(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(places, np.int64)
        return rows, self._pool[(self._keys(rows) % np.uint64(len(self._pool))).astype(np.int64)]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """int64 [k]: bytes of clips, up to a tenth more or less than the ratio."""
        spread = 0.9 + 0.2 * uniform(key(self.seed, 1, rows))
        return (2 * self.ratio * spread * self.lengths(rows)[1]).astype(np.int64)

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        return key(self.seed, 0, rows)

    def weights(self, first: int, last: int) -> np.ndarray:
        raise NotImplementedError(UNASKED)

    def sent(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        raise NotImplementedError(UNASKED)

    def fingerprint(self) -> str:
        return self.told

    def weights_fingerprint(self) -> str:
        raise NotImplementedError(UNASKED)


@dataclass(frozen=True)
class Job:
    """How a step's packs are shared."""

    ranks: int
    workers: int = 2  # a rank
    per_forward: int = 1  # packs
    local: bool = False  # `plan.locality=node`
    prefetch: int = 2  # steps
    files: int = FILES

    @property
    def nodes(self) -> int:
        return -(-self.ranks // NODE)

    def forwards(self, packs: int) -> int:
        """A, of a step with all its packs."""
        return -(-packs // (self.ranks * self.per_forward))

    def ahead(self, packs: int) -> int:
        """Steps that the workers may be ahead: torch keeps `prefetch` steps of each worker's share, rounded up."""
        forwards = self.forwards(packs)
        return max(1, self.workers) * self.prefetch * -(-forwards // max(1, self.workers)) // forwards


class Reads(NamedTuple):
    """Reads of some plans, in the order in which each worker makes them, rank after rank, step after step: n draws."""

    rank: np.ndarray  # int64 [n]
    worker: np.ndarray  # int64 [n], over all ranks
    step: np.ndarray  # int64 [n], from the first plan's first
    forward: np.ndarray  # int64 [n], of the step
    row: np.ndarray  # int64 [n], of the index
    cost: np.ndarray  # float64 [steps, ranks], of all packs that a rank has of a step


def follow(plans: Sequence[Epoch], job: Job) -> Reads:
    """Deal all steps of some plans that follow each other. Raises ValueError where a pack has no clip, as at the end of
    an epoch."""
    first, packs = plans[0].first_step, plans[0].packs
    if any((np.diff(plan.pack_offset) == 0).any() for plan in plans):
        raise ValueError("The plans reach the epoch's end, whose packs may be empty: follow fewer blocks.")
    steps = plans[-1].end - first
    forwards = job.forwards(packs)
    taken = np.empty((steps, 3, packs), np.int64)  # rank, forward and place in it of each pack
    cost = np.empty((steps, job.ranks))
    for plan in plans:
        for step in range(plan.first_step, plan.end):
            each = np.asarray(plan.pack_cost[plan.packs_of(step)])
            dealt = deal(each, job.ranks, job.per_forward, job.nodes if job.local else 1)
            where = np.nonzero(dealt >= 0)
            taken[step - first][:, dealt[where]] = np.stack(where)
            cost[step - first] = np.where(dealt >= 0, each[dealt], 0).sum((1, 2))
    counts = np.concatenate([np.diff(plan.pack_offset) for plan in plans])
    pack = np.repeat(np.arange(steps * packs), counts)
    step = pack // packs
    rank, forward, place = (taken[:, name].reshape(-1)[pack] for name in range(3))
    order = np.lexsort((place, forward, step, rank))
    worker = rank * max(1, job.workers) + (step * forwards + forward) % max(1, job.workers)
    row = np.concatenate([plan.row for plan in plans])
    return Reads(*(of[order] for of in (rank, worker, step, forward, row)), cost)


def opened(reads: Reads, shard: np.ndarray, files: int) -> np.ndarray:
    """bool [n]: whether a read opens its shard: each worker keeps the `files` that it used last."""
    order = np.argsort(reads.worker, kind="stable")
    found = np.empty(len(order), bool)
    held: OrderedDict[int, None] = OrderedDict()
    last = -1
    for at, worker, one in zip(order.tolist(), reads.worker[order].tolist(), shard[order].tolist()):
        if worker != last:
            held.clear()
            last = worker
        found[at] = one not in held
        if found[at] and len(held) >= files:
            held.popitem(last=False)
        held[one] = None
        held.move_to_end(one)
    return found


class Layout:
    """What `gamut.data.remote` asks of an index to cut pieces: that of some shards of a made set alone."""

    folder = Path()
    by_ranges = False

    def __init__(self, made: Made, shards: np.ndarray) -> None:
        """shards: int64 [k], ascending; here they are numbers 0 to k - 1."""
        count = made.counts[shards]
        self.shard_table = shards
        self.first = np.concatenate([[0], np.cumsum(count)])
        own = self.first[:-1]
        self.size = made.sizes(np.repeat(made.first[shards] - own, count) + np.arange(int(count.sum())))
        before = np.cumsum(self.size) - self.size
        self.offset = before - np.repeat(before[own], count)

    def __len__(self) -> int:
        return len(self.size)

    def rows_of(self, shard: int) -> range:
        return range(int(self.first[shard]), int(self.first[shard + 1]))


def pieces_of(made: Made, rows: np.ndarray, largest: int) -> tuple[Pieces, np.ndarray]:
    """(the pieces of all shards that these rows are of, as `gamut.data.remote` cuts them; int64 [n], the piece of each
    row)."""
    shards, which = np.unique(rows // made.shard_clips, return_inverse=True)
    layout = Layout(made, shards)
    pieces = cut_pieces(layout, largest)  # type: ignore[arg-type]
    at = layout.first[which] + rows - made.first[shards][which]
    return pieces, np.searchsorted(pieces.first, at, side="right") - 1


class Fetched(NamedTuple):
    """What the caches of all nodes fetch."""

    here: np.ndarray  # bool [n], in the order of the reads: whether a read fetches its piece
    most: int  # bytes that a node's cache held at most


def fetched(reads: Reads, piece: np.ndarray, size: np.ndarray, limit: int) -> Fetched:
    """Follow each node's cache of `limit` bytes, the piece that was read least recently gone first. `size` is int64
    [pieces]. The ranks of a node take turns forward by forward, the workers of a rank alike."""
    node = reads.rank // NODE
    order = np.lexsort((reads.rank, reads.forward, reads.step, node))
    here = np.empty(len(order), bool)
    sizes = size.tolist()
    held: OrderedDict[int, None] = OrderedDict()
    last, used, most = -1, 0, 0
    for at, now, one in zip(order.tolist(), node[order].tolist(), piece[order].tolist()):
        if now != last:
            held.clear()
            last, used = now, 0
        here[at] = one not in held
        if here[at]:
            used += sizes[one]
            while used > limit:
                used -= sizes[held.popitem(last=False)[0]]
            most = max(most, used)
        held[one] = None
        held.move_to_end(one)
    return Fetched(here, most)


@dataclass(frozen=True)
class Assumed:
    """What is not measured here."""

    gpu: float = 750.0  # clips of 10 s that a GPU takes a second
    worker: float = 576.0  # clips of 10 s that a loader worker decodes and cuts a second
    latency: float = 1.0  # ms that an open, a stat or a read waits for the storage, in the mean
    jitter: float = 0.01  # standard deviation of a rank's seconds of a step, by their mean
    slow: float = 0.1  # by how much one rank is slower than the others
    metadata: float = 100_000.0  # opens and stats that the storage answers a second
    network: float = 5.0  # GB/s that a node reads

    @property
    def cost_a_second(self) -> float:
        """Of a GPU, in the plan's unit of cost."""
        tokens = 496.0  # of 10 s at a hop of 10 ms
        return self.gpu * (tokens + ALPHA * tokens**2)


def read_seconds(made: Made, reads: Reads, opens: np.ndarray, by: Assumed, seed: int = 0) -> np.ndarray:
    """float64 [n]: what each read takes in its worker, from the storage's answer (after an exponential wait, and
    another where it `opens`, bool [n]) to the cut clip. A clip has the same luck with the storage in every job."""
    waits = [-np.log1p(-uniform(key(seed, purpose, reads.row))) for purpose in (2, 3)]
    decoded = made.lengths(reads.row)[1] / (CLIP * RATE) / by.worker
    return decoded + by.latency / 1000 * (waits[0] + opens * waits[1])


class Times(NamedTuple):
    """Of all steps together, in seconds."""

    work: float  # of a mean rank
    imbalance: float  # that the costliest rank of each step takes more
    jitter: float  # that each step waits for its latest rank beyond that
    slow: float  # what one slower rank adds to work and imbalance
    waiting: float  # for batches behind the first
    first: float  # until every rank has its first batch
    hidden: float  # how long all readers may stand still before a step waits, workers ahead as far as they may

    @property
    def steps(self) -> float:
        """From the first batch to the last step's end; no rank is slower than the others."""
        return self.work + self.imbalance + self.jitter + self.waiting


def times(reads: Reads, seconds: np.ndarray, job: Job, packs: int, by: Assumed, seed: int = 0) -> Times:
    """Step after step: all wait for the rank whose batches come last, then for the one that computes longest.

    seconds: float64 [n], of each read in its worker.
    """
    work = reads.cost / by.cost_a_second
    steps, ranks = work.shape
    shaken = work * (1 + by.jitter * np.random.default_rng(seed).standard_normal(work.shape))
    slower = work.copy()
    slower[:, 0] *= 1 + by.slow
    mean, longest = work.mean(1).sum(), work.max(1).sum()

    workers = ranks * max(1, job.workers)
    taken = np.bincount(reads.step * workers + reads.worker, weights=seconds, minlength=steps * workers)
    taken = taken.reshape(steps, workers)
    ahead, free, end = job.ahead(packs), np.zeros(workers), 0.0
    begun, waits = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        busy = taken[step] > 0
        may = begun[step - ahead] if step >= ahead else 0.0
        free[busy] = np.maximum(free[busy], may) + taken[step, busy]
        begun[step] = max(end, float(free[busy].max(initial=0.0)))
        waits[step] = begun[step] - end
        end = begun[step] + float(shaken[step].max())
    return Times(
        work=float(mean),
        imbalance=float(longest - mean),
        jitter=float(shaken.max(1).sum() - longest),
        slow=float(slower.max(1).sum() - longest),
        waiting=float(waits[1:].sum()),
        first=float(waits[0]),
        hidden=ahead * float(longest) / steps,
    )
