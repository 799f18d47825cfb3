"""A run's plans, made ahead: the next one in a separate process while the current one runs.

Planning is a pure function, so it makes no difference to results which process plans. But not all of them should, and
no step should wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from gamut.data.kept import kept_in
from gamut.errors import PlanError
from gamut.plan import Catalogue, Clips, Epoch, Held, Policy, in_blocks
from gamut.plan.lanes import Spread
from gamut.processes import watch_ancestors

FIRST_PROCESSES = 4  # plan the first epoch, which the run waits for; later ones get one core in the background
INLINE_CLIPS = 10_000  # up to this many are planned in milliseconds, less than starting a process takes


class Ahead:
    """Gives a run its plans, and makes the next one in the background while one runs.

    A plan is an epoch, or where the set is planned in blocks (`gamut.plan.in_blocks`) a block of one. Plans are saved
    in `folder`, below a name made of their fingerprint: different ones are kept apart, and a resumed run maps what is
    saved. Unless the set is small, planning runs in a separate process: the packer is pure Python, and in a thread it
    would block the training loop for seconds. One process of a node should `lead`; the others only wait for it. With
    `lead`, plans before the previous one are removed.

    >>> with Ahead("runs/asit_b/plan", clips, seed=0, policy=policy, epochs=40) as plans:      # doctest: +SKIP
    ...     epoch = plans.take(3)
    """

    def __init__(
        self,
        folder: str | Path,
        clips: Clips | Catalogue,
        seed: int,
        policy: Policy,
        epochs: int,
        lead: bool = True,
    ) -> None:
        if isinstance(clips, Clips) and in_blocks(len(clips), policy):
            clips = Held(clips)
        self.clips = clips
        self.epochs = epochs
        self.lead = lead
        self.kept = kept_in(Path(folder), clips, seed, policy)
        self.fingerprint = self.kept.fingerprint
        self.folder = self.kept.folder
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def path(self, number: int, block: int = 0) -> Path:
        """Where a plan is saved."""
        return self.kept.path(number, block)

    def begin(self) -> None:
        """Start planning the first epoch if none is saved yet: it is planned while the model is built, and `take` waits
        for it."""
        if self.lead and self.epochs and not any(self.folder.glob("epoch-*")):
            self._start(0, 0, processes=min(FIRST_PROCESSES, len(os.sched_getaffinity(0))))

    def take(self, number: int, step: int = 0) -> Epoch:
        """The plan of epoch `number`, or its block that has this step of it (the last one, where all steps are taken);
        at once if it was planned ahead. Then starts planning the next one.

        Raises PlanError as `plan_epoch` and `ensure_epoch` do.
        """
        self._wait()
        block = self.kept.block_of(number, step)
        epoch = self.kept.ensure(number, block)
        if self.lead:
            self.kept.remove_before(number, block)
            if epoch.following[0] < self.epochs and not self.path(*epoch.following).exists():
                self._start(*epoch.following)
        return epoch

    def planned(self, number: int, block: int = 0) -> Epoch | None:
        """A plan if it is saved by now and can be read, at once and unverified: `take` is sure of it."""
        if number >= self.epochs or not self.path(number, block).exists():
            return None
        with contextlib.suppress(PlanError):
            return self.kept.load(number, block)
        return None

    def close(self) -> None:
        """Stop planning ahead. Saved plans are kept."""
        if self._process is not None:
            self._process.terminate()
        self._wait()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, number: int, block: int = 0, processes: int = 1) -> None:
        if len(self.clips) <= INLINE_CLIPS:
            self._thread = threading.Thread(
                target=self._plan_here, args=(number, block), daemon=True, name="plan-ahead"
            )
            self._thread.start()
            return
        # A separate program rather than a fork or a spawned copy, which would bring the run's threads or imports along.
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gamut.data.ahead"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self._thread = threading.Thread(
            target=self._feed, args=(self._process, number, block, processes), daemon=True, name="plan-ahead"
        )
        self._thread.start()

    def _plan_here(self, number: int, block: int) -> None:
        with contextlib.suppress(PlanError):  # `take` meets the same error, and raises it in the main thread
            self.kept.ensure(number, block)

    def _feed(self, process: subprocess.Popen[bytes], number: int, block: int, processes: int) -> None:
        """Send the work and wait. A process that fails prints why on stderr; `take` then plans in this process."""
        assert process.stdin is not None
        told, columns = sent(self.clips)
        work = {
            "folder": str(self.folder),
            "seed": self.kept.seed,
            "number": number,
            "block": block,
            "policy": asdict(self.kept.policy),
            "clips": told,
            "columns": {name: [column.dtype.str, len(column)] for name, column in columns.items()},
            "processes": processes,
        }
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(work).encode() + b"\n")
            for column in columns.values():
                process.stdin.write(np.ascontiguousarray(column).data)
            process.stdin.flush()
        process.wait()  # the pipe stays open until then: when it closes, the process knows that we are gone
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._thread = self._process = None


def sent(clips: Clips | Catalogue) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Clips as another process can be told of them: a JSON object, and arrays by name."""
    if isinstance(clips, Catalogue):
        return clips.sent()
    return {}, {name: getattr(clips, name) for name in clips.types()}


def received(told: dict[str, Any], columns: dict[str, np.ndarray]) -> Clips | Catalogue:
    """What was `sent`."""
    if not told:
        return Clips(**columns)
    from gamut.shards.catalogue import Indexed  # large sets alone: it reads the index

    return Indexed.received(told, columns)


def plan_on(processes: int, plan: Callable[[Spread], Epoch]) -> Epoch:
    """The plan by `processes` forks of this process, which must not hold locks that planning needs.

    The plan is the same with any number of them, and even if one dies. None outlives this process by more than a
    second.
    """
    if processes > 1:
        end_with_us = partial(watch_ancestors, os.getpid(), parent=os.getpid())
        pool = ProcessPoolExecutor(processes, get_context("fork"), end_with_us)
        with contextlib.suppress(BrokenProcessPool), pool:
            return plan(pool.map)
    return plan(map)


def plan_from_stdin() -> None:
    """The process behind `Ahead`: make and save one plan, given as a JSON line and the bytes of arrays on stdin.

    Ends at once when the other end of stdin is closed: nothing goes on planning for a run that is gone.
    """
    os.nice(5)  # the loader's workers have priority
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this process
    source = sys.stdin.buffer
    work = json.loads(source.readline())
    columns = {}
    for name, (dtype, length) in work["columns"].items():
        column = source.read(length * np.dtype(dtype).itemsize)
        if len(column) < length * np.dtype(dtype).itemsize:
            os._exit(1)
        columns[name] = np.frombuffer(column, dtype)

    def leave_with_parent() -> None:
        os.read(0, 1)  # unbuffered: the end of the process would wait for a lock on stdin
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    policy = Policy(**work["policy"])
    clips = received(work["clips"], columns)
    if isinstance(clips, Clips) and in_blocks(len(clips), policy):
        clips = Held(clips)
    kept = kept_in(Path(work["folder"]).parent, clips, work["seed"], policy)
    kept.ensure(work["number"], work["block"], partial(plan_on, work["processes"]))


if __name__ == "__main__":
    plan_from_stdin()
