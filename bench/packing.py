"""Packers side by side: padding, and clips planned a second.

    python bench/packing.py                     three mixes of lengths, every packer, under half a minute
    python bench/packing.py --clips 1000000 --class-token

Each mix imitates the lengths of a data set (AudioSet at hops of 10 to 40 ms); no audio is read. The peers: the
published packing (batches of 12, each packed in order; ElasticAST, section 3.1), the same order without batches
(next_fit), and best-fit-decreasing over windows of 4,096 clips, which sorts by length. Ours: exact. Padding is the
share of a pack's token budget that no clip fills. The second table is the whole planner: an epoch with order, lanes,
packs and crops, the empty packs of its last step, and how far the costliest rank is over the mean, with a step's
packs dealt in turn and by `deal`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from gamut.plan import Clips, Epoch, Policy, deal, plan_epoch
from gamut.plan.crops import measure
from gamut.plan.packing import exact_fill, next_fit

MAX_CLIPS = 64
PUBLISHED_BATCH = 12
SORTED_WINDOW = 4096
CUT_AT = 2992  # frames: 30 s
RESOLUTIONS = tuple(range(160, 641, 32))  # 10 ms x {1.0, 1.2, ..., 4.0}


def voxceleb(rng: np.random.Generator, n: int) -> np.ndarray:
    """Seconds: from 4, 8.2 in the mean, a long tail."""
    return 4 + rng.exponential(4.2, n)


def epic(rng: np.random.Generator, n: int) -> np.ndarray:
    """Seconds: short actions, median 1.9, mean about 4.9, a very long tail."""
    return np.exp(rng.normal(np.log(1.9), 1.35, n))


def audioset(rng: np.random.Generator, n: int) -> np.ndarray:
    """Seconds: 10, a few clips shorter."""
    return np.where(rng.random(n) < 0.95, 10.0, rng.uniform(1, 10, n))


MIXES: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], tuple[int, ...]]] = {
    "VoxCeleb-like": (voxceleb, (160,)),
    "Epic-like": (epic, (160,)),
    "AudioSet, mixed": (audioset, RESOLUTIONS),
}


def mix(name: str, n: int, seed: int) -> Clips:
    rng = np.random.default_rng(seed)
    samples = np.maximum(400, (MIXES[name][0](rng, n) * 16000).astype(np.int64))
    ids = rng.integers(0, 2**64, n, dtype=np.uint64)
    return Clips(np.arange(n), ids, np.arange(n) // 1000, samples, samples)


def published(tokens: np.ndarray, budget: int) -> int:
    """Packs of in-order packing, a batch of clips at a time."""
    batches = np.split(tokens, range(PUBLISHED_BATCH, len(tokens), PUBLISHED_BATCH))
    return sum(len(next_fit(batch, budget, MAX_CLIPS).counts) for batch in batches)


def best_fit_decreasing(tokens: np.ndarray, budget: int) -> int:
    """Packs when the longest clip of a window goes first, each into the fullest pack that has room."""
    packs = 0
    for window in np.split(tokens, range(SORTED_WINDOW, len(tokens), SORTED_WINDOW)):
        room: list[tuple[int, int]] = []  # (tokens free, clips) of open packs, fullest first
        for size in np.sort(window)[::-1].tolist():
            at = bisect_left(room, (size, 0))
            free, clips = room.pop(at) if at < len(room) else (budget, 0)
            packs += clips == 0
            if clips + 1 < MAX_CLIPS and free > size:
                insort(room, (free - size, clips + 1))
    return packs


PACKERS: dict[str, Callable[[np.ndarray, int, int], int]] = {
    "published": lambda tokens, budget, _: published(tokens, budget),
    "next_fit": lambda tokens, budget, _: len(next_fit(tokens, budget, MAX_CLIPS).counts),
    "best-fit, sorted": lambda tokens, budget, _: best_fit_decreasing(tokens, budget),
    "exact": lambda tokens, budget, lookahead: len(exact_fill(tokens, budget, MAX_CLIPS, lookahead).counts),
}


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        since = time.perf_counter()
        run()
        taken.append(time.perf_counter() - since)
    return statistics.median(taken)


def imbalance(epoch: Epoch, world: int) -> tuple[float, float]:
    """(dealt in turn, dealt by cost): how far the costliest rank is over the mean, in the mean over full steps."""
    ours, in_turn = [], []
    for step in range(max(1, epoch.steps - 1)):
        cost = epoch.pack_cost[step * epoch.packs : (step + 1) * epoch.packs]
        dealt = deal(cost, world, 1).reshape(world, -1)
        load = np.where(dealt >= 0, cost[dealt], 0).sum(1)
        ours.append(load.max() / load.mean() - 1)
        blind = np.array([cost[rank::world].sum() for rank in range(world)])
        in_turn.append(blind.max() / blind.mean() - 1)
    return statistics.mean(in_turn), statistics.mean(ours)


def packer_rows(tokens: np.ndarray, policy: Policy, repeats: int) -> Iterator[tuple[str, ...]]:
    """One row a packer; times as multiples of the published packer's."""
    assert policy.tokens is not None
    budget, published_seconds = policy.tokens, 0.0
    for name, run in PACKERS.items():
        packs = run(tokens, budget, policy.lookahead)
        seconds = median_seconds(partial(run, tokens, budget, policy.lookahead), repeats)
        published_seconds = published_seconds or seconds
        padding = 1 - int(tokens.sum()) / (packs * budget)
        rate = len(tokens) / seconds
        yield name, f"{padding:.2%}", f"{packs:,}", f"{rate:,.0f}", f"{seconds / published_seconds:.2f}x"


def planner_row(clips: Clips, policy: Policy, options: argparse.Namespace) -> tuple[str, ...]:
    epoch = plan_epoch(clips, options.seed, 0, policy)
    seconds = median_seconds(partial(plan_epoch, clips, options.seed, 0, policy), options.repeats)
    summary = epoch.summary(options.world)
    in_turn, by_cost = imbalance(epoch, options.world)
    rate = f"{len(clips) / seconds:,.0f}"
    return f"{summary['padding']:.2%}", f"{summary['waste']:.2%}", rate, f"{in_turn:.2%}", f"{by_cost:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000, help="clips a mix (default 100,000)")
    parser.add_argument("--tokens", type=int, default=2048, help="token budget of a pack (default 2,048)")
    parser.add_argument("--lookahead", type=int, default=64, help="of exact fill (default 64)")
    parser.add_argument("--class-token", action="store_true", help="one CLS a clip: lengths of 8k + 1 fit worse")
    parser.add_argument("--packs", type=int, default=1024, help="packs a step, second table (default 1,024)")
    parser.add_argument("--world", type=int, default=64, help="ranks, second table (default 64)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median time counts (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    packers = Table(title=f"{options.clips:,} clips into packs of {options.tokens:,} tokens")
    for column in ("mix", "packer", "padding", "packs", "clips/s", "time"):
        packers.add_column(column, justify="left" if column in ("mix", "packer") else "right")
    planner = Table(
        title=f"Whole epochs: {options.packs} packs a step, {options.world} ranks",
        caption="waste: padding and the empty packs of the last, short step\n"
        "costliest rank over the mean: packs dealt in turn, and by cost",
    )
    for column in ("mix", "packer", "padding", "waste", "clips/s", "in turn", "by cost"):
        planner.add_column(column, justify="left" if column in ("mix", "packer") else "right")

    for name, (_, hops) in MIXES.items():
        fits = (options.tokens - options.class_token) // 8 * 16
        policy = Policy(
            packs=options.packs, tokens=options.tokens, max_clips=MAX_CLIPS, max_frames=min(CUT_AT, fits),
            class_token=options.class_token, hops=hops, lookahead=options.lookahead,
        )  # fmt: skip
        clips = mix(name, options.clips, options.seed)
        for row in packer_rows(measure(clips, options.seed, 0, policy).tokens, policy, options.repeats):
            packers.add_row(name, *row)
        packers.add_section()
        for packer in ("next_fit", "exact"):
            row = planner_row(clips, replace(policy, packer=packer), options)
            planner.add_row(name, packer, *row)
        planner.add_section()
    console = Console()
    console.print(packers)
    console.print(planner)


if __name__ == "__main__":
    main()
