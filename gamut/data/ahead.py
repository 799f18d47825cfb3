"""A run's epochs, planned ahead: the next one in a separate process while the current one runs.

Planning is a pure function, so it makes no difference to results which process plans. But not all of them should, and
no step should wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from gamut.data.plans import ensure_epoch, load_epoch
from gamut.errors import PlanError
from gamut.plan import Clips, Epoch, Policy, digest, plan_epoch, plan_fingerprint
from gamut.plan.clips import OPTIONAL, TYPES
from gamut.processes import watch_ancestors

FIRST_PROCESSES = 4  # plan the first epoch, which the run waits for; later ones get one core in the background
INLINE_CLIPS = 10_000  # up to this many are planned in milliseconds, less than starting a process takes


class Ahead:
    """Gives a run its epochs, and plans epoch e + 1 in the background while e runs.

    Epochs are saved in `folder`, below a name made of the plan's fingerprint: different plans are kept apart, and a
    resumed run maps what is saved. Unless the set is small, planning runs in a separate process: the packer is pure
    Python, and in a thread it would block the training loop for seconds. One process of a node should `lead`; the
    others only wait for it. With `lead`, epochs before the previous one are removed.

    >>> with Ahead("runs/asit_b/plan", clips, seed=0, policy=policy, epochs=40) as plans:      # doctest: +SKIP
    ...     epoch = plans.take(3)
    """

    def __init__(
        self, folder: str | Path, clips: Clips, seed: int, policy: Policy, epochs: int, lead: bool = True
    ) -> None:
        self.clips = clips
        self.seed = seed
        self.policy = policy
        self.epochs = epochs
        self.lead = lead
        self.fingerprint = plan_fingerprint(clips, seed, policy)
        self.folder = Path(folder) / digest(self.fingerprint)
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def path(self, number: int) -> Path:
        """Where an epoch is saved."""
        return self.folder / f"epoch-{number:05d}"

    def begin(self) -> None:
        """Start planning the first epoch if none is saved yet: it is planned while the model is built, and `take` waits
        for it."""
        if self.lead and self.epochs and not any(self.folder.glob("epoch-*")):
            self._start(0, processes=min(FIRST_PROCESSES, len(os.sched_getaffinity(0))))

    def take(self, number: int) -> Epoch:
        """Epoch `number`, at once if it was planned ahead. Then starts planning the next one.

        Raises PlanError as `plan_epoch` and `ensure_epoch` do.
        """
        self._wait()
        expect = self._expect(number)
        epoch = ensure_epoch(self.path(number), lambda: plan_epoch(self.clips, self.seed, number, self.policy), expect)
        if self.lead:
            self._remove_before(number - 1)
            if number + 1 < self.epochs and not self.path(number + 1).exists():
                self._start(number + 1)
        return epoch

    def planned(self, number: int) -> Epoch | None:
        """Epoch `number` if it is saved by now and can be read, at once and unverified: `take` is sure of it."""
        if number >= self.epochs or not self.path(number).exists():
            return None
        with contextlib.suppress(PlanError):
            return load_epoch(self.path(number), self._expect(number), verify=False)
        return None

    def close(self) -> None:
        """Stop planning ahead. Saved epochs are kept."""
        if self._process is not None:
            self._process.terminate()
        self._wait()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _expect(self, number: int) -> dict[str, str]:
        return self.fingerprint | {"epoch": str(number)}

    def _start(self, number: int, processes: int = 1) -> None:
        if len(self.clips) <= INLINE_CLIPS:
            self._thread = threading.Thread(target=self._plan_here, args=(number,), daemon=True, name="plan-ahead")
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
            target=self._feed, args=(self._process, number, processes), daemon=True, name="plan-ahead"
        )
        self._thread.start()

    def _plan_here(self, number: int) -> None:
        with contextlib.suppress(PlanError):  # `take` meets the same error, and raises it in the main thread
            ensure_epoch(self.path(number), lambda: plan_epoch(self.clips, self.seed, number, self.policy))

    def _feed(self, process: subprocess.Popen[bytes], number: int, processes: int) -> None:
        """Send the work and wait. A process that fails prints why on stderr; `take` then plans in this process."""
        assert process.stdin is not None
        work = {
            "folder": str(self.path(number)),
            "seed": self.seed,
            "number": number,
            "policy": asdict(self.policy),
            "clips": len(self.clips),
            "columns": list(self.clips.types()),
            "processes": processes,
        }
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(work).encode() + b"\n")
            for name, dtype in self.clips.types().items():
                process.stdin.write(np.ascontiguousarray(getattr(self.clips, name), dtype).data)
            process.stdin.flush()
        process.wait()  # the pipe stays open until then: when it closes, the process knows that we are gone
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._thread = self._process = None

    def _remove_before(self, number: int) -> None:
        """Remove epochs before `number`, which every rank has finished."""
        for folder in self.folder.glob("epoch-*"):
            if folder.name < self.path(number).name:
                shutil.rmtree(folder, ignore_errors=True)


def plan_on(processes: int, clips: Clips, seed: int, number: int, policy: Policy) -> Epoch:
    """`plan_epoch` by `processes` forks of this process, which must not hold locks that planning needs.

    The plan is the same with any number of them, and even if one dies. None outlives this process by more than a
    second.
    """
    if processes > 1:
        end_with_us = partial(watch_ancestors, os.getpid(), parent=os.getpid())
        pool = ProcessPoolExecutor(processes, get_context("fork"), end_with_us)
        with contextlib.suppress(BrokenProcessPool), pool:
            return plan_epoch(clips, seed, number, policy, pool.map)
    return plan_epoch(clips, seed, number, policy)


def plan_from_stdin() -> None:
    """The process behind `Ahead`: plan and save one epoch, given as a JSON line and the bytes of the clips' columns
    on stdin.

    Ends at once when the other end of stdin is closed: nothing goes on planning for a run that is gone.
    """
    os.nice(5)  # the loader's workers have priority
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this process
    source = sys.stdin.buffer
    work = json.loads(source.readline())
    types = {name: np.dtype((TYPES | OPTIONAL)[name]) for name in work["columns"]}
    columns = {name: source.read(work["clips"] * dtype.itemsize) for name, dtype in types.items()}
    if any(len(column) < work["clips"] * types[name].itemsize for name, column in columns.items()):
        os._exit(1)
    clips = Clips(**{name: np.frombuffer(column, types[name]) for name, column in columns.items()})
    policy = Policy(**work["policy"])

    def leave_with_parent() -> None:
        os.read(0, 1)  # unbuffered: the end of the process would wait for a lock on stdin
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    ensure_epoch(work["folder"], lambda: plan_on(work["processes"], clips, work["seed"], work["number"], policy))


if __name__ == "__main__":
    plan_from_stdin()
