"""Independent jobs over processes, with progress; no process outlives the others when one is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gamut.errors import ShardError
from gamut.watchdog import WATCHDOG

Job = TypeVar("Job")
Result = TypeVar("Result")

LIMIT = 1800.0  # seconds without a unit done, after which whoever works on it has hung

_shared: Any = None  # (units done, stop flag) of the pool that this worker process belongs to


class _Stopped(Exception):
    """The pool was told to stop."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def spread(
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Sequence[Job],
    workers: int,
    progress: Callable[[int], None],
) -> list[Result]:
    """`work(job, advance)` for every job, with results in the order of the jobs; `progress(n)` is called for each n
    units done.

    `work` is a function of a module and calls `advance(n)`. With one worker, or one job, everything runs in this
    process. The first exception stops the other jobs at their next `advance` and is raised. Raises ShardError where a
    process was killed. A process that hangs for `LIMIT` says where on stderr, and ends.
    """
    if min(workers, len(jobs)) <= 1:

        def advance(units: int) -> None:
            WATCHDOG.beat()
            progress(units)

        with WATCHDOG.within(LIMIT, "one of the shards"):
            return [work(job, advance) for job in jobs]
    # Spawned, not forked: a forked child would inherit the locks of the caller's threads.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Value("b", 0)
    seen = 0
    with ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=_begin, initargs=(done, stop, os.getpid(), LIMIT)
    ) as pool:
        futures = [pool.submit(_work, work, job) for job in jobs]
        try:
            waiting: set = set(futures)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                progress(done.value - seen)
                seen = done.value
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise ShardError(
                "A worker process was killed, perhaps because memory ran out, or it hung, and its stacks are above. "
                "Run the same command again with fewer --workers; what is finished is kept."
            ) from error
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)


def _begin(done: Any, stop: Any, parent: int, limit: float) -> None:
    global _shared, LIMIT
    LIMIT = limit
    _shared = done, stop
    for number in (signal.SIGINT, signal.SIGUSR2):  # the parent handles both (the latter comes from SLURM) and stops us
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(work: Callable[[Any, Callable[[int], None]], Any], job: Any) -> Any:
    with WATCHDOG.within(LIMIT, "one of the shards"):
        return work(job, _advance)


def _advance(units: int) -> None:
    done, stop = _shared
    WATCHDOG.beat()
    if stop.value:
        raise _Stopped
    with done.get_lock():
        done.value += units
