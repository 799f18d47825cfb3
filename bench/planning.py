"""Planning at the size of AudioSet: seconds, memory, padding, balance; the paper's in-order packing beside it.

    python bench/planning.py                       2,000,000 clips, three mixes of lengths: minutes on a busy machine
    python bench/planning.py --clips 200000 --class-token
    python bench/planning.py --clips 20000000      planned in blocks: all but `open` is then of the first

Each mix imitates the lengths of a data set (bench/packing.py); the index is written to disk as `convert` would, no
audio is read. Every mix runs in a process of its own, whose peak memory is shown. Seconds are of the processor, not of
the clock, so that other work on the machine does not count; planning uses one core.

`open`: index opened, table of clips. `plan`: an epoch in memory, or the first block of a large set's. `first`, by the
clock: the index opened and the first plan made by a run's background process, saved and mapped: what stands between the
start of a run and its first batch (up to four processes share it, since the run waits). `resume`: a second process
opens the index, checks that the saved plan is of these clips, and maps it. `peak`, `run`: memory of the process that
plans, and of a run whose plan another makes. `in order`: padding of batches of 12 packed in order (ElasticAST, section
3.1).
`padding`: of packs that have clips; `waste`: of all packs of a step that are run, empty ones included.
`ranks`, `nodes`: how far the costliest of 64 ranks is over the mean, packs dealt over all ranks, or within 8 nodes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.packing import MAX_CLIPS, MIXES, mix, published
from gamut.data.ahead import Ahead
from gamut.plan import Catalogue, Clips, Epoch, Policy, crops, deal, first_plan
from gamut.shards import Index
from gamut.shards.build import build
from gamut.shards.part import Part
from gamut.shards.select import select

CUT_AT = 2992  # frames: 30 s
A_SHARD = 1000
NODES = 8
AT_ONCE = 2_000_000


def write_index(folder: Path, clips: int) -> float:
    """An index of so many clips, without its tars; returns the seconds that it took to make its parts and build it."""

    def parts() -> Iterator[Part]:
        for number, first in enumerate(range(0, clips, A_SHARD)):
            rows = range(first, min(first + A_SHARD, clips))
            ones = [1] * len(rows)
            keys, labels = [f"clip-{row:07d}" for row in rows], [[row % 527] for row in rows]
            yield Part(f"shard-{number:06d}.tar", 2, 0, "set", {}, keys, ones, ones, ones, ones, labels)

    folder.mkdir(parents=True, exist_ok=True)
    since = time.process_time()
    build(folder, "set", [str(number) for number in range(527)], parts())
    return time.process_time() - since


def write_lengths(folder: Path, name: str, options: argparse.Namespace) -> None:
    """Give the clips of the index the lengths of a mix, 2 million at a time."""
    path = folder / "index" / "samples.npy"
    samples = np.lib.format.open_memmap(path, "w+", np.int64, (options.clips,))
    for number, first in enumerate(range(0, options.clips, AT_ONCE)):
        last = min(first + AT_ONCE, options.clips)
        samples[first:last] = mix(name, last - first, options.seed + number).samples


def imbalance(epoch: Epoch, world: int, nodes: int) -> float:
    """How far the costliest rank is over the mean, in the mean over the full steps (64 of them, evenly chosen)."""
    over = []
    for step in np.unique(np.linspace(0, max(0, epoch.steps - 2), 64).astype(int)).tolist():
        cost = epoch.pack_cost[step * epoch.packs : (step + 1) * epoch.packs]
        dealt = deal(cost, world, 1, nodes).reshape(world, -1)
        load = np.where(dealt >= 0, cost[dealt], 0).sum(1)
        over.append(load.max() / load.mean() - 1)
    return float(np.mean(over))


def policy_of(name: str, options: argparse.Namespace) -> Policy:
    fits = (options.tokens - options.class_token) // 8 * 16
    return Policy(
        packs=options.packs, tokens=options.tokens, max_clips=MAX_CLIPS, max_frames=min(CUT_AT, fits),
        class_token=options.class_token, hops=MIXES[name][1],
    )  # fmt: skip


def most_memory() -> float:
    """GB that this process has held at most. (Of getrusage it would be what its parent held, where that was more.)"""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def opened_clips(folder: Path, policy: Policy) -> Clips | Catalogue:
    return select(Index.open(folder, tars=False, intact=False), {}, "", policy)


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Open and plan; then what the plan is worth."""
    since = time.process_time()
    policy = policy_of(name, options)
    clips = opened_clips(folder, policy)
    opened = time.process_time() - since
    epoch = first_plan(clips, options.seed, policy)
    planned = time.process_time() - since - opened
    peak = most_memory()
    summary = epoch.summary(options.world)
    found = {"open": opened, "plan": planned, "peak": peak, "draws": len(epoch.row)}
    found["steps"] = epoch.forecast().steps
    found |= {"padding": summary["padding"], "waste": summary["waste"]}
    found["ranks"] = imbalance(epoch, options.world, 1)
    local = first_plan(clips, options.seed, replace(policy, locality="node"))
    found["nodes"] = imbalance(local, options.world, NODES)
    some = clips.select(np.arange(min(len(clips), 12 * 20_000)))
    tokens = crops.measure(some, options.seed, 0, policy).tokens
    found["in_order"] = 1 - int(tokens.sum()) / (published(tokens, options.tokens) * options.tokens)
    return found


def begin(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """As a run begins."""
    since = time.perf_counter()
    policy = policy_of(name, options)
    with Ahead(folder / "plan", opened_clips(folder, policy), options.seed, policy, epochs=1) as plans:
        plans.begin()
        plans.take(0)
        first = time.perf_counter() - since
    return {"first": first, "run": most_memory()}


def resume(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    since = time.process_time()
    policy = policy_of(name, options)
    with Ahead(folder / "plan", opened_clips(folder, policy), options.seed, policy, epochs=1, lead=False) as plans:
        epoch = plans.take(0)
    assert epoch.row[epoch.pack_offset[epoch.steps // 2 * epoch.packs]] >= 0  # the middle is there at once
    return {"resume": time.process_time() - since}


def elsewhere(what: str, name: str, folder: Path) -> dict[str, float]:
    """`measure`, `begin` or `resume` in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--do", what, name, str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2_000_000, help="clips a mix (default 2,000,000)")
    parser.add_argument("--tokens", type=int, default=2048, help="token budget of a pack (default 2,048)")
    parser.add_argument("--class-token", action="store_true", help="one CLS a clip: lengths of 8k + 1 fit worse")
    parser.add_argument("--packs", type=int, default=1024, help="packs a step (default 1,024: 16 for each of 64 ranks)")
    parser.add_argument("--world", type=int, default=64, help="ranks (default 64)")
    parser.add_argument("--mix", choices=list(MIXES), action="append", help="only this mix (may be repeated)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--do", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        what, name, folder = options.do
        print(json.dumps({"measure": measure, "begin": begin, "resume": resume}[what](name, Path(folder), options)))
        return

    speed = Table(title=f"{options.clips:,} clips: seconds of one core, and peak memory")
    worth = Table(title=f"Packs of {options.tokens:,} tokens, {options.packs} a step, {options.world} ranks")
    for table, columns in (
        (speed, ("mix", "open", "plan", "clips/s", "first", "resume", "peak GB", "run GB")),
        (worth, ("mix", "steps", "in order", "padding", "waste", "ranks", "nodes")),
    ):
        for column in columns:
            table.add_column(column, justify="left" if column == "mix" else "right")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        speed.caption = f"index built of its parts in {write_index(folder, options.clips):.1f} s"
        for name in options.mix or MIXES:
            write_lengths(folder, name, options)
            found = {}
            for what in ("measure", "begin", "resume"):
                found |= elsewhere(what, name, folder)
            shutil.rmtree(folder / "plan")
            seconds = [f"{found[key]:.2f}" for key in ("open", "plan", "first", "resume", "peak", "run")]
            seconds.insert(2, f"{found['draws'] / found['plan']:,.0f}")
            speed.add_row(name, *seconds)
            shares = [f"{found[key]:.3%}" for key in ("padding", "waste", "ranks", "nodes")]
            worth.add_row(name, f"{found['steps']:,.0f}", f"{found['in_order']:.1%}", *shares)
    console = Console()
    console.print(speed)
    console.print(worth)


if __name__ == "__main__":
    main()
