"""A job on 8 to 4,096 ranks over 200 million clips, simulated: who reads what, from where, and who waits for whom.

    python -m bench.simulation                                   minutes of one core
    python -m bench.simulation --packs 16384 --ranks 512 4096    larger steps, some numbers of ranks
    python -m bench.simulation --shard-clips 20000 --out docs/figures/simulation.png

Made clips (no index, no audio; lengths like a data set's, bench/packing.py) are planned by the real planner, some
blocks that follow each other, the same ones for all numbers of ranks, and dealt by the real `deal`, 8 ranks a node.
Followed draw by draw: which worker reads a clip, whether it has the shard open, whether the node's cache has the piece
that the clip is in. Measured here, on real code: planning, opening an index, mapping a plan (seconds of one core, opens
and stats). Assumed, and to be set: what is so named in `--help`, all speeds of GPUs, workers and storage among it.

First table. `imbalance`: how far a step's costliest rank is over the mean, by the plan; `jitter`: what it costs that
ranks are not equally fast in every step; `waiting`: for batches; each a share of all time. `slow rank`: time that one
slower rank adds, by the time without it. `idle for`: how long the storage may answer nobody before a step waits.
`planner`: seconds in which one process plans a block, by those in which the ranks consume it: over 100 % they wait.
`clips/s`: of all ranks, if they do not. `first batch`: from the first look at the index to the first step's batches on
the last rank (imports and the model come beside it): `open`, the index and the maps of the first plan; the longest of
`check` (its pages compared with their checksums), `tars` (each looked for) and `plan`, which go on at once; `reads`.

Second table. `GB/s`: of the busiest node. `opens`: of shards, by clips and a second, of all workers; `held`: shards
that they have open; `to map a block`: opens and stats of all ranks and workers, once a block.

Third table, of a set that is read from a remote store through the node's cache. `cache`: what a dry run asks for.
`fetched`: bytes that the nodes fetch, by the bytes that they read, with that cache and with twice as much; `GB/s`: of a
node, with twice as much; `at once`: the most that a node fetches in one step; `requests/s`: of all nodes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.packing import MAX_CLIPS, MIXES
from bench.planning import CUT_AT
from bench.simulated import (
    NODE,
    Assumed,
    Fetched,
    Job,
    Made,
    Times,
    fetched,
    follow,
    opened,
    pieces_of,
    read_seconds,
    times,
)
from bench.started import Start, begin
from gamut.data.reader import FILES
from gamut.plan import Border, Epoch, Policy, plan_block
from gamut.progress import Progress
from gamut.track.figures import new_figure

LOST = ("imbalance", "jitter", "waiting")
HELP = {
    "gpu": "clips of 10 s that a GPU takes a second (ASiT-B on an H100 by docs/scaling.md)",
    "worker": "clips of 10 s that a loader worker decodes and cuts a second (docs/scaling.md)",
    "latency": "ms that an open, a stat or a read waits for the storage",
    "jitter": "standard deviation of a rank's seconds of a step, by their mean",
    "slow": "by how much one rank is slower than the others",
    "metadata": "opens and stats that the storage answers a second",
    "network": "GB/s that a node reads",
}


@dataclass(frozen=True)
class Row:
    """A job on a shared file system."""

    job: Job
    times: Times
    planning: float  # seconds that one process plans a block, by those that its steps take
    clips: float  # a second, of all ranks
    bytes: float  # a second, of the busiest node
    opens: float  # of shards, by clips
    held: int  # shards open at most, in all workers together
    to_map: int  # opens and stats to map a block
    start: dict[str, float]  # seconds

    @property
    def first(self) -> float:
        """Seconds to the first batch: the index is checked, tars are looked for and a block is planned at once."""
        return self.start["open"] + max(self.start[name] for name in ("check", "tars", "plan")) + self.start["reads"]

    def lost(self, name: str) -> float:
        """The share of all time that one of the columns of the first table takes."""
        return getattr(self.times, name) / self.times.steps


def simulate(made: Made, plans: Sequence[Epoch], job: Job, by: Assumed, start: Start) -> Row:
    """One number of ranks on a shared file system."""
    reads = follow(plans, job)
    shard = reads.row // made.shard_clips
    opens = opened(reads, shard, job.files)
    found = times(reads, read_seconds(made, reads, opens, by), job, plans[0].packs, by)
    both = np.unique(reads.worker * len(made.counts) + shard) // len(made.counts)
    settled = reads.step >= plans[-1].first_step - plans[0].first_step  # by then workers have opened what there was
    return Row(
        job,
        found,
        start.planning * len(plans) / found.steps,
        clips=len(reads.row) / found.steps,
        bytes=float(np.bincount(reads.rank // NODE, weights=made.sizes(reads.row)).max()) / found.steps,
        opens=float(opens[settled].mean()),
        held=int(np.minimum(np.bincount(both), job.files).sum()),
        to_map=start.to_map(job),
        start=start.seconds(job, by) | {"reads": found.first},
    )


@dataclass(frozen=True)
class Remote:
    """A job by the second table."""

    job: Job
    piece: int  # bytes
    cache: int  # bytes a node: lanes x window
    once: float  # bytes fetched by bytes read, with that cache
    twice: float  # with one of double the size
    rate: float  # bytes a second that a node fetches
    burst: int  # bytes, the most that a node fetches in one step
    requests: float  # a second, of all nodes


def stream(made: Made, plans: Sequence[Epoch], job: Job, policy: Policy, piece: int, by: Assumed) -> Remote:
    """One number of ranks that read through their nodes' caches, if these kept up: steps take what ranks compute."""
    reads = follow(plans, job)
    pieces, of = pieces_of(made, reads.row, piece)
    mean = made.sizes(reads.row).mean()
    cache = asked(policy, mean, int(pieces.sizes.max()), job)
    read = float(made.sizes(reads.row).sum())

    def bytes_of(what: Fetched) -> np.ndarray:
        return np.where(what.here, pieces.sizes[of], 0)

    once, twice = (bytes_of(fetched(reads, of, pieces.sizes, limit)) for limit in (cache, 2 * cache))
    seconds = reads.cost.max(1).sum() / by.cost_a_second
    node = reads.rank // NODE
    each = np.bincount(node, weights=twice)
    burst = np.bincount(reads.step * job.nodes + node, weights=twice)
    asks = np.count_nonzero(twice) / seconds
    ratios = once.sum() / read, twice.sum() / read
    return Remote(job, piece, cache, *ratios, each.max() / seconds, int(burst.max()), asks)


def asked(policy: Policy, clip: float, largest: int, job: Job) -> int:
    """Bytes, as `gamut.data.remote.cache_needed` has them of a set whose clips have so many bytes in the mean."""
    lanes = -(-policy.lanes // (job.nodes if job.local else 1))
    return int(lanes * (policy.window * clip + 2 * largest))


def plan_blocks(made: Made, policy: Policy, blocks: int, told: Progress) -> tuple[list[Epoch], float]:
    """(so many blocks from the epoch's first; seconds of one core that the first took)."""
    border, plans, first = Border(), [], 0.0
    for block in range(blocks):
        since = time.process_time()
        plan, border = plan_block(made, 0, 0, policy, block, border)
        plans.append(plan)
        first = first or time.process_time() - since
        told.add(1)
    return plans, first


def job_of(options: argparse.Namespace, ranks: int, local: bool = False) -> Job:
    per_forward = max(1, min(options.per_forward, options.packs // ranks))
    return Job(ranks, options.workers, per_forward, local, options.prefetch, options.files)


def run(options: argparse.Namespace, folder: Path) -> tuple[list[Row], list[Remote], Start]:
    """Everything that the tables show."""
    by = Assumed(**{field.name: getattr(options, field.name) for field in fields(Assumed)})
    made = Made(options.clips, options.mix, options.shard_clips, options.flac)
    policy = Policy(
        packs=options.packs, tokens=options.tokens, max_clips=MAX_CLIPS, window=options.window, block=options.block,
        max_frames=min(CUT_AT, options.tokens // 8 * 16), class_token=False, hops=MIXES[options.mix][1],
    )  # fmt: skip
    pieces = [int(size * 1e6) for size in options.piece_mb]
    near = [ranks for ranks in options.remote_ranks if ranks > NODE]
    todo = (
        (1 + bool(near)) * options.blocks + len(options.ranks) + len(pieces) * (len(options.remote_ranks) + len(near))
    )
    with Progress("simulating", todo, "parts") as told:
        plans, planning = plan_blocks(made, policy, options.blocks, told)
        start = begin(made, plans[0], planning, folder)
        rows = []
        for ranks in options.ranks:
            rows.append(simulate(made, plans, job_of(options, ranks), by, start))
            told.add(1)
        remote = []
        for local, counts in ((False, options.remote_ranks), (True, near)):
            if local and near:
                policy = replace(policy, locality="node")
                plans, _ = plan_blocks(made, policy, options.blocks, told)
            for piece in pieces:
                for ranks in counts:
                    remote.append(stream(made, plans, job_of(options, ranks, local), policy, piece, by))
                    told.add(1)
    return rows, remote, start


def tables(rows: Sequence[Row], remote: Sequence[Remote]) -> list[Table]:
    """As the head of this file says."""
    pace = _table("ranks", "nodes", *LOST, "slow rank", "idle for", "planner", "clips/s", "first batch", *rows[0].start)
    storage = _table("ranks", "GB/s a node", "opens a clip", "opens/s", "held", "to map a block")
    stores = _table(
        "locality",
        "piece, MB",
        "ranks",
        "cache, GB",
        "fetched",
        "with twice",
        "GB/s a node",
        "at once, GB",
        "requests/s",
    )
    for row in rows:
        slow = row.times.slow / (row.times.work + row.times.imbalance)
        pace.add_row(
            f"{row.job.ranks:,}", f"{row.job.nodes:,}", *(f"{row.lost(name):.2%}" for name in LOST), f"{slow:.1%}",
            f"{row.times.hidden:.3f} s", f"{row.planning:.1%}", f"{row.clips:,.0f}", f"{row.first:.1f} s",
            *(f"{one:.1f}" for one in row.start.values()),
        )  # fmt: skip
        storage.add_row(
            f"{row.job.ranks:,}", f"{row.bytes / 1e9:.2f}", f"{row.opens:.2f}", f"{row.opens * row.clips:,.0f}",
            f"{row.held:,}", f"{row.to_map:,}",
        )  # fmt: skip
    for one in remote:
        stores.add_row(
            "node" if one.job.local else "none", f"{one.piece / 1e6:g}", f"{one.job.ranks:,}", f"{one.cache / 1e9:.1f}",
            f"{one.once:.2f}x", f"{one.twice:.2f}x", f"{one.rate / 1e9:.2f}", f"{one.burst / 1e9:.2f}",
            f"{one.requests:,.0f}",
        )  # fmt: skip
    return [pace, storage, *([stores] if remote else [])]


def _table(*columns: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for column in columns:
        table.add_column(column, justify="left" if column == "locality" else "right")
    return table


def draw(rows: Sequence[Row], remote: Sequence[Remote], path: Path) -> None:
    """Shares of time lost, and bytes a second of a node, over the number of ranks."""
    figure = new_figure(9, 3.4)
    lost, rate = figure.subplots(1, 2)
    ranks = [row.job.ranks for row in rows]
    for name in LOST:
        lost.plot(ranks, [100 * row.lost(name) for row in rows], marker=".", label=name)
    rate.plot(ranks, [row.bytes / 1e9 for row in rows], "k.-", label="shared file system")
    for local, piece in sorted({(one.job.local, one.piece) for one in remote}):
        some = [one for one in remote if (one.job.local, one.piece) == (local, piece)]
        label = f"remote, locality={'node' if local else 'none'}, {piece / 1e6:g} MB"
        rate.plot([one.job.ranks for one in some], [one.rate / 1e9 for one in some], ".-", label=label)
    for axis, title in ((lost, "time lost, %"), (rate, "GB/s a node")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(ranks, [f"{one:,}" for one in ranks], rotation=45, fontsize=7)
        axis.set_xlabel("ranks")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    rate.set_yscale("log")
    figure.savefig(path, dpi=90)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--clips", type=int, default=200_000_000, help="of the set (default 200,000,000)")
    made.add_argument("--mix", choices=list(MIXES), default="VoxCeleb-like", help="lengths (default VoxCeleb-like)")
    made.add_argument("--shard-clips", type=int, default=1000, help="clips a shard (default 1,000)")
    made.add_argument("--flac", type=float, default=0.58, help="assumed: bytes by those of the samples (default 0.58)")
    made.add_argument("--packs", type=int, default=4096, help="packs a step (default 4,096)")
    made.add_argument("--tokens", type=int, default=2048, help="token budget of a pack (default 2,048)")
    made.add_argument("--window", type=int, default=16384, help="plan.window (default 16,384)")
    made.add_argument("--block", type=int, default=1 << 20, help="plan.block (default 1,048,576)")
    made.add_argument("--blocks", type=int, default=2, help="how many are followed, from the first (default 2)")
    made.add_argument("--ranks", type=int, nargs="+", default=[8 << n for n in range(10)], help="default 8 to 4,096")
    made.add_argument("--remote-ranks", type=int, nargs="*", default=[8, 64, 512, 4096], help="of the third table")
    made.add_argument("--per-forward", type=int, default=4, help="packs, or as many as a rank has (default 4)")
    made.add_argument("--workers", type=int, default=6, help="loader.workers (default 6)")
    made.add_argument("--prefetch", type=int, default=2, help="loader.prefetch (default 2)")
    made.add_argument("--files", type=int, default=FILES, help=f"shards that a worker keeps open (default {FILES})")
    made.add_argument("--piece-mb", type=float, nargs="+", default=[16.0, 1.0], help="remote.piece_mb (default 16, 1)")
    for field in fields(Assumed):
        text = f"assumed: {HELP[field.name]} (default {field.default:g})"
        made.add_argument(f"--{field.name}", type=float, default=field.default, help=text)
    made.add_argument("--out", type=Path, help="a figure, .png")
    return made


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    for ranks in (*options.ranks, *options.remote_ranks):
        if ranks % NODE or options.packs % ranks:
            raise SystemExit(f"--ranks {ranks}: a multiple of {NODE} that divides --packs {options.packs} is followed.")
    with tempfile.TemporaryDirectory(prefix="gamut-simulation-") as temporary:
        rows, remote, start = run(options, Path(temporary))
    console = Console(width=200)
    console.print(f"{options.clips:,} clips, {options.packs:,} packs a step. Measured: {start}")
    for table in tables(rows, remote):
        console.print(table)
    if options.out:
        draw(rows, remote, options.out)


if __name__ == "__main__":
    main()
