"""A rank's share of an epoch, step by step, read ahead by worker processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch, Parcel
from gamut.data.reader import FeatureReader, Features, Reader, Readers, open_reader
from gamut.errors import GamutError, MachineError, PlanError
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
    (`locality: node`), and with `neighbours` a forward joins the same packs at any number of ranks (`deal`).

    With `workers` 0 everything is read in this process when it is needed. Otherwise a work item is one micro-batch, and
    each worker prepares up to `prefetch` steps' worth of its share. `pin` puts batches into pinned memory. With
    `features` clips are read from that cache instead of from the shards; the plan must be one of `cached` clips.
    `waited` is the time in seconds that the consumer has spent waiting for batches since the loader was made.

    A run's plans share one loader, be they epochs or blocks of one: `later` gives a plan by its number and block as
    soon as it is there, None until then. After a plan's last step the workers then stay for the next one (`go_on`),
    whose first steps they have read by then if it was made in time; of another epoch only with `across`. They end when
    a plan is left in the middle, and on `close`.

    Raises at the step concerned: ShardError, PlanError or FeatureError as `assemble` does, in whichever process it
    happens; MachineError where a worker process died.
    """

    def __init__(
        self,
        index: Index,
        epoch: Epoch,
        *,
        rank: int,
        world: int,
        per_forward: int,
        start_step: int | None = None,
        workers: int = 2,
        prefetch: int = 2,
        pin: bool = False,
        nodes: int = 1,
        neighbours: bool = False,
        features: Features | None = None,
        later: Callable[[int, int], Epoch | None] | None = None,
        across: bool = True,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of a world of {world}")
        start_step = epoch.first_step if start_step is None else start_step
        if not epoch.first_step <= start_step <= epoch.end:
            raise ValueError(
                f"step {start_step} is not one of the {epoch.steps} steps of epoch {epoch.number} from "
                f"{epoch.first_step} on"
            )
        self.epoch = epoch
        self.start_step = start_step
        self.workers = workers
        self.prefetch = prefetch
        self.pin = pin
        self.waited = 0.0
        self._later, self._across = later, across
        dealing = Dealing(world, per_forward, nodes, neighbours)
        self._source = _MicroBatches(index, epoch, rank, dealing, features, workers > 0 or pin, later)
        self._loader: DataLoader | None = None
        self._parcels: Any = None
        self._read_until = (-1, -1)  # the plan that the workers have come to, by number and block

    @property
    def accumulation(self) -> int:
        """A, the micro-batches of a step: ceil(packs / (world x per_forward))."""
        return self._source.accumulation

    def forwards(self, step: int) -> int:
        """The micro-batches of this step, the same on every rank: fewer than A where the last are empty for all."""
        return self._source.forwards(step)

    def __len__(self) -> int:
        """Steps from `start_step` to the end of the plan."""
        return self.epoch.end - self.start_step

    def go_on(self, epoch: Epoch) -> None:
        """Take up the plan after the one that has been iterated to its end, from its first step."""
        self.epoch, self.start_step = epoch, epoch.first_step
        self._source.epoch = epoch

    def close(self) -> None:
        """End the workers."""
        if self.workers and self._parcels is not None:
            self._parcels._shutdown_workers()  # now, not when the last traceback that refers to them is collected
            self._kill()
            atexit.unregister(self._kill)
        self._parcels = self._loader = None

    def __iter__(self) -> Iterator[tuple[int, list[PackedBatch]]]:
        stay = False
        try:
            for step in range(self.start_step, self.epoch.end):
                since = time.perf_counter()
                batches = [self._next() for _ in range(self.forwards(step))]
                self.waited += time.perf_counter() - since
                yield step, batches
            stay = self._later is not None
        finally:
            if stay:
                self.start_step = self.epoch.end
            else:
                self.close()

    def _items(self) -> Iterator[Item]:
        """The work of this plan, and of those after it that are there when their turn comes."""
        epoch, start = self.epoch, self.start_step
        while True:
            self._read_until = _name(epoch)
            for step in range(start, epoch.end):
                for part in range(self._source.forwards(step, epoch)):
                    yield Item(*_name(epoch), step, part)
            known = self._across or epoch.following[0] == epoch.number
            following = self._later(*epoch.following) if self.workers and self._later and known else None
            if following is None:
                return
            epoch, start = following, following.first_step

    def _start(self) -> None:
        """Begin to read; workers that there are go on with what they have open."""
        if self._loader is not None:
            self._parcels = iter(self._loader)
            return
        shared: dict[str, Any] = {}
        if self.workers:
            # Fork: nothing is pickled, the index and the plan are shared memory maps, a worker starts in milliseconds.
            share = -(-self.accumulation // self.workers)
            shared = {
                "multiprocessing_context": "fork",
                "worker_init_fn": functools.partial(_settle, os.getpid()),
                "prefetch_factor": max(1, self.prefetch) * share,
                "persistent_workers": self._later is not None,
            }
        self._loader = DataLoader(
            self._source,
            batch_size=None,
            sampler=_Work(self._items),
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator(),  # otherwise it would draw a seed from the global generator
            **shared,
        )
        with _held_signals():
            self._parcels = iter(self._loader)
        if self.workers:
            atexit.register(self._kill)

    def _kill(self) -> None:
        """End the workers with this process, if not before: they ignore SIGTERM, by which torch and multiprocessing
        would end them."""
        for worker in self._parcels._workers:
            worker.kill()

    def _next(self) -> PackedBatch:
        died = None
        try:
            if self._parcels is None or self._read_until < _name(self.epoch):
                self._start()
            item = next(self._parcels)
        except (RuntimeError, EOFError, OSError) as error:
            lost = isinstance(error, (EOFError, OSError)) or "exited unexpectedly" in str(error)
            if not self.workers or not lost or str(error).startswith("Caught "):  # raised inside a worker that lives
                raise
            died = str(error)
        if died is not None:
            raise MachineError(
                f"A data loader worker of process {os.getpid()} died ({died}). The usual cause is a lack of memory "
                "(see the kernel's log) or of shared memory (df /dev/shm): give the job more, or lower loader.workers "
                "or loader.prefetch. The run can be resumed from its last checkpoint."
            )
        if isinstance(item, GamutError):
            raise item
        return item.open() if isinstance(item, Parcel) else item


class Item(NamedTuple):
    """A micro-batch by its place in the run: epoch, block of it, step of the epoch, and which of the step's it is."""

    number: int
    block: int
    step: int
    part: int


def _name(epoch: Epoch) -> tuple[int, int]:
    return epoch.number, epoch.block


class _Work(Sampler):
    """What torch asks anew for the items of each plan."""

    def __init__(self, items: Callable[[], Iterator[Item]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Item]:
        return self._items()


class Dealing(NamedTuple):
    """How the packs of a step are dealt: what `deal` is told beside their cost."""

    world: int
    per_forward: int
    nodes: int
    neighbours: bool


class _MicroBatches(Dataset):
    """An item is a micro-batch, or the GamutError that stopped it.

    An error is returned, not raised, since torch would rebuild a raised one from its traceback as text.
    """

    def __init__(
        self,
        index: Index,
        epoch: Epoch,
        rank: int,
        dealing: Dealing,
        features: Features | None,
        parcels: bool,
        later: Callable[[int, int], Epoch | None] | None,
    ) -> None:
        self.index = index
        self.features = features
        self.epoch = epoch
        self.rank = rank
        self.dealing = dealing
        self.parcels = parcels  # batches are to be sent, or pinned, in one piece
        self.later = later
        self.accumulation = -(-epoch.packs // (dealing.world * dealing.per_forward))
        self._reader: Reader | Readers | FeatureReader | None = None  # opened in the process that reads
        # The step dealt last: its micro-batches are requested one after another.
        self._dealt: tuple[tuple[int, int], Any] = ((-1, -1), None)  # by epoch and step

    def forwards(self, step: int, epoch: Epoch | None = None) -> int:
        return forwards(_cost(epoch or self.epoch, step), *self.dealing)

    def __getitem__(self, item: Item) -> Parcel | PackedBatch | GamutError:
        number, block, step, part = item
        if self._reader is None:
            self._reader = (
                open_reader(self.index) if self.features is None else FeatureReader(self.index, self.features)
            )
        try:
            if (number, block) != _name(self.epoch):
                self.epoch = self._open(number, block)
            if self._dealt[0] != (number, step):
                dealt = deal(_cost(self.epoch, step), *self.dealing)
                self._dealt = (number, step), dealt[self.rank]
            first = self.epoch.packs_of(step).start
            packs = [first + int(pack) for pack in self._dealt[1][part] if pack >= 0]
            made = assemble(self._reader, self.epoch, packs)
            return Parcel.of(made) if self.parcels else made
        except GamutError as error:
            return error

    def _open(self, number: int, block: int) -> Epoch:
        epoch = self.later(number, block) if self.later else None
        if epoch is None:
            raise PlanError(f"The plan of epoch {number} was there when its reading began, and is gone.")
        return epoch


def _cost(epoch: Epoch, step: int) -> np.ndarray:
    return np.asarray(epoch.pack_cost[epoch.packs_of(step)])


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
