"""A rank's share of an epoch, step by step, read ahead by worker processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch, Parcel
from gamut.data.reader import FeatureReader, Features, Reader, Readers, open_reader
from gamut.errors import GamutError, RunError
from gamut.plan import Epoch, deal, forwards
from gamut.processes import watch_ancestors
from gamut.shards import Index

# A worker is forked with its parent's handlers; until it has its own, these must not reach it. The preemption signal
# is the one that matters: a scheduler's handler would save and requeue from inside a worker.
HANDLED = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM}


class Loader:
    """Iterates over (step in the epoch, its micro-batches for this rank: A batches of up to `per_forward` packs each).

    The plan and `deal` decide which packs a rank gets: the same clips make a global step at any world size, and the
    number of workers affects only the speed. Starting at `start_step` reads nothing before it. The packs of each step
    are dealt by cost, so every rank has equally many batches in a step, some of them perhaps empty (those that would be
    empty on every rank are left out: `forwards`). With `nodes` above 1 packs stay with the node of their lanes
    (`locality: node`).

    With `workers` 0 everything is read in this process when it is needed. Otherwise a work item is one micro-batch, and
    each worker prepares up to `prefetch` steps' worth of its share. `pin` puts batches into pinned memory. With
    `features` clips are read from that cache instead of from the shards; the plan must be one of `cached` clips.
    `waited` is the time in seconds that the consumer has spent waiting for batches since the loader was made.

    Raises at the step concerned: ShardError, PlanError or FeatureError as `assemble` does, in whichever process it
    happens; RunError where a worker process died.
    """

    def __init__(
        self,
        index: Index,
        epoch: Epoch,
        *,
        rank: int,
        world: int,
        per_forward: int,
        start_step: int = 0,
        workers: int = 2,
        prefetch: int = 2,
        pin: bool = False,
        nodes: int = 1,
        features: Features | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of a world of {world}")
        if not 0 <= start_step <= epoch.steps:
            raise ValueError(f"step {start_step} is not one of the {epoch.steps} steps of epoch {epoch.number}")
        self.epoch = epoch
        self.start_step = start_step
        self.workers = workers
        self.prefetch = prefetch
        self.pin = pin
        self.waited = 0.0
        self._source = _MicroBatches(index, epoch, rank, world, per_forward, nodes, features, workers > 0 or pin)

    @property
    def accumulation(self) -> int:
        """A, the micro-batches of a step: ceil(packs / (world x per_forward))."""
        return self._source.accumulation

    def forwards(self, step: int) -> int:
        """The micro-batches of this step, the same on every rank: fewer than A where the last are empty for all."""
        return self._source.forwards(step)

    def __len__(self) -> int:
        """Steps from `start_step` to the end of the epoch."""
        return self.epoch.steps - self.start_step

    def __iter__(self) -> Iterator[tuple[int, list[PackedBatch]]]:
        parcels = self._parcels()
        with _workers_of(parcels) if self.workers else contextlib.nullcontext():
            for step in range(self.start_step, self.epoch.steps):
                since = time.perf_counter()
                batches = [self._next(parcels) for _ in range(self.forwards(step))]
                self.waited += time.perf_counter() - since
                yield step, batches

    def _parcels(self) -> Any:
        shared: dict[str, Any] = {}
        if self.workers:
            # Fork: nothing is pickled, the index and the plan are shared memory maps, a worker starts in milliseconds.
            share = -(-self.accumulation // self.workers)
            shared = {
                "multiprocessing_context": "fork",
                "worker_init_fn": functools.partial(_settle, os.getpid()),
                "prefetch_factor": max(1, self.prefetch) * share,
            }
        items = (
            step * self.accumulation + part
            for step in range(self.start_step, self.epoch.steps)
            for part in range(self.forwards(step))
        )
        loader = DataLoader(
            self._source,
            batch_size=None,
            sampler=items,
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator(),  # otherwise it would draw a seed from the global generator
            **shared,
        )
        with _held_signals():
            return iter(loader)

    def _next(self, parcels: Iterator[Any]) -> PackedBatch:
        died = None
        try:
            item = next(parcels)
        except (RuntimeError, EOFError, OSError) as error:
            lost = isinstance(error, (EOFError, OSError)) or "exited unexpectedly" in str(error)
            if not self.workers or not lost or str(error).startswith("Caught "):  # raised inside a worker that lives
                raise
            died = str(error)
        if died is not None:
            raise RunError(
                f"A data loader worker of process {os.getpid()} died ({died}). The usual cause is a lack of memory "
                "(see the kernel's log) or of shared memory (df /dev/shm): give the job more, or lower loader.workers "
                "or loader.prefetch. The run can be resumed from its last checkpoint."
            )
        if isinstance(item, GamutError):
            raise item
        return item.open() if isinstance(item, Parcel) else item


class _MicroBatches(Dataset):
    """Item step * A + a is micro-batch a of a step, or the GamutError that stopped it.

    An error is returned, not raised, since torch would rebuild a raised one from its traceback as text.
    """

    def __init__(
        self,
        index: Index,
        epoch: Epoch,
        rank: int,
        world: int,
        per_forward: int,
        nodes: int,
        features: Features | None,
        parcels: bool,
    ) -> None:
        self.index = index
        self.features = features
        self.epoch = epoch
        self.rank = rank
        self.world = world
        self.per_forward = per_forward
        self.nodes = nodes
        self.parcels = parcels  # batches are to be sent, or pinned, in one piece
        self.accumulation = -(-epoch.packs // (world * per_forward))
        self._reader: Reader | Readers | FeatureReader | None = None  # opened in the process that reads
        self._dealt: tuple[int, Any] = (
            -1,
            None,
        )  # the step dealt last: its micro-batches are requested one after another

    def forwards(self, step: int) -> int:
        return forwards(self._cost(step), self.world, self.per_forward, self.nodes)

    def _cost(self, step: int) -> np.ndarray:
        return np.asarray(self.epoch.pack_cost[step * self.epoch.packs : (step + 1) * self.epoch.packs])

    def __getitem__(self, item: int) -> Parcel | PackedBatch | GamutError:
        step, part = divmod(item, self.accumulation)
        if self._reader is None:
            self._reader = (
                open_reader(self.index) if self.features is None else FeatureReader(self.index, self.features)
            )
        if self._dealt[0] != step:
            self._dealt = step, deal(self._cost(step), self.world, self.per_forward, self.nodes)[self.rank]
        packs = [step * self.epoch.packs + int(pack) for pack in self._dealt[1][part] if pack >= 0]
        try:
            made = assemble(self._reader, self.epoch, packs)
            return Parcel.of(made) if self.parcels else made
        except GamutError as error:
            return error


def _settle(parent: int, worker: int) -> None:
    """Give a forked worker its own signal handlers and end. (torch has set it to one thread.)"""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the rank handles it
    # A scheduler warns every process of a job, but batches are needed up to the checkpoint that the rank then writes.
    # A function rather than SIG_IGN, which the commands that a worker runs would inherit.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    watch_ancestors(parent=parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


@contextlib.contextmanager
def _workers_of(parcels: Any) -> Iterator[None]:
    """End the workers with the block or with this process, whichever comes first: they ignore SIGTERM, by which torch
    and multiprocessing would end them."""

    def kill() -> None:
        for worker in parcels._workers:
            worker.kill()

    atexit.register(kill)
    try:
        yield
    finally:
        parcels._shutdown_workers()  # now, not when the last traceback that refers to them is collected
        kill()
        atexit.unregister(kill)


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Block signals while workers are forked, and keep torch from raising in a signal handler afterwards.

    torch's SIGCHLD handler raises wherever the main thread happens to be when a worker dies, in the middle of a
    collective or a checkpoint. Without it the next wait for a batch finds the loss within 5 s.
    """
    child = signal.getsignal(signal.SIGCHLD)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        if child is not None and signal.getsignal(signal.SIGCHLD) is not child:
            signal.signal(signal.SIGCHLD, child)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
