"""What a job does before its first batch: real code, timed and its opens and stats counted on a small index."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench.planning import write_index
from bench.simulated import NODE, Assumed, Job, Made
from gamut.data.plans import load_epoch, save_epoch
from gamut.plan import Epoch
from gamut.remote.pages import PAGE
from gamut.shards import Index
from gamut.shards.check import require_names
from gamut.shards.index import LOOKERS
from gamut.shards.shard_table import ShardTable

COUNTED = 100_000  # clips of the index that is opened


class Counted:
    """Opens and stats, by path, of what is in a folder, while it is entered: those of Python's functions."""

    def __init__(self, folder: Path) -> None:
        self.all = 0
        self._within = f"{folder}{os.sep}"
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Counted:
        for name in ("open", "stat", "lstat", "scandir", "listdir"):
            self._count(os, name)
        for module in (io, builtins):
            self._count(module, "open")
        return self

    def _count(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], (str, Path)):  # a descriptor asks no server for a path
                self.all += f"{args[0]}".startswith(self._within)
            return real(*args, **kwargs)

        setattr(owner, name, counted)
        self._undo.callback(setattr, owner, name, real)

    def __exit__(self, *_: object) -> None:
        self._undo.close()


@dataclass(frozen=True)
class Start:
    """What real code does before a job's first batch, on this machine; the set has so many clips and shards."""

    clips: int
    shards: int
    opening: int  # opens and stats of a rank that opens the index and has no share of the comparing
    columns: int
    pages: int  # of all columns, which have a checksum each
    index_bytes: int
    named: float  # seconds of each rank, over the shards' names
    checking: float  # seconds of one core, to compare all of it with its checksums
    planning: float  # of the first block
    plan_bytes: int
    mapping: int  # opens and stats of a rank that takes a plan, and compares it with its checksums
    again: int  # of a worker that maps it
    compared: float  # seconds of a rank

    def operations(self, ranks: int) -> int:
        """Opens and stats of a whole job before it reads: each rank opens the index and maps the first plan, which its
        workers are forked with; a column is opened once more by each rank that has a page of it to compare; all ranks
        together look for every tar."""
        return ranks * (self.opening + self.mapping) + min(self.columns * ranks, self.pages) + self.shards

    def to_map(self, job: Job) -> int:
        """Opens and stats of all ranks and workers to map the next block: a rank takes it, and asks for it once before
        that so that its workers may read ahead."""
        return job.ranks * (self.mapping + (1 + job.workers) * self.again)

    def seconds(self, job: Job, by: Assumed) -> dict[str, float]:
        """By what they go on: `open`, then the other three at once."""
        share, node = self.index_bytes / job.ranks, by.network * 1e9
        opens = self.operations(job.ranks) - self.shards
        return {
            "open": self.named + max(opens / job.ranks * by.latency / 1000, opens / by.metadata),
            "check": max(share * min(job.ranks, NODE) / node, self.checking / job.ranks),
            "tars": max(self.shards / job.ranks / LOOKERS * by.latency / 1000, self.shards / by.metadata),
            "plan": self.planning + self.plan_bytes / node + self.compared,
        }


def begin(made: Made, plan: Epoch, planning: float, folder: Path) -> Start:
    """Count and time what a rank does, on a whole block, and an index of fewer clips in the format of many shards."""
    given = folder / "set"
    with mock.patch("gamut.shards.build.MANY", 0):
        write_index(given, COUNTED)
    since = time.process_time()
    with without_share(), Counted(given) as opening:
        Index.open(given, tars=False)
    alone = time.process_time() - since
    index = Index.open(given, tars=False)
    checking = max(0.0, time.process_time() - since - 2 * alone) / COUNTED * len(made)
    grown = {False: len(made) / COUNTED, True: len(made.counts) / len(index.shards)}
    sizes = [int(column.nbytes * grown[name.startswith("shard-")]) for name, column in index.arrays.items()]
    save_epoch(plan, folder / "plan")
    since = time.process_time()
    with Counted(folder / "plan") as mapping:
        load_epoch(folder / "plan")
    compared = time.process_time() - since
    with Counted(folder / "plan") as again:
        load_epoch(folder / "plan", verify=False)
    return Start(
        clips=len(made),
        shards=len(made.counts),
        opening=opening.all,
        columns=len(index.arrays),
        pages=sum(-(-size // PAGE) for size in sizes),
        index_bytes=sum(sizes),
        named=name_seconds(len(made.counts)),
        checking=checking,
        planning=planning,
        plan_bytes=sum(path.stat().st_size for path in (folder / "plan").iterdir()),
        mapping=mapping.all,
        again=again.all,
        compared=compared,
    )


def name_seconds(shards: int) -> float:
    """Seconds of one core to read and check the names of so many shards."""
    names = [f"shard-{number:06d}.tar".encode() for number in range(shards)]
    ends = np.concatenate([[0], np.cumsum([len(name) for name in names])])
    columns = {name: np.zeros(shards, np.int64) for name in ("shard-size", "shard-clips", "shard-checksum")}
    columns |= {"shard-name_offset": ends, "shard-name": np.frombuffer(b"".join(names), np.uint8)}
    since = time.process_time()
    require_names((), ShardTable.mapped(columns).name, {}, ())
    return time.process_time() - since


@contextlib.contextmanager
def without_share() -> Iterator[None]:
    """Open an index as a rank of a large job does that has no page of it to compare."""
    with mock.patch("gamut.shards.index.SMALL", 0), mock.patch.dict(os.environ, RANK="999999", WORLD_SIZE="1000000"):
        yield
