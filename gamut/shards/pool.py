"""Independent jobs over processes, with progress; no process outlives the others when one is killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gamut.errors import ShardError
from gamut.watchdog import WATCHDOG

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 4  # jobs a worker that are under way or done and not taken yet
AUTO = 0  # workers: as many as there are cores, as soon as the work has taken BRIEF seconds in this process alone
BRIEF = 3.0  # seconds: of the order of what it takes to start processes
LIMIT = 1800.0  # seconds without a unit done, after which whoever works on it has hung

_shared: Any = None  # (units done, stop flag) of the pool that this worker process belongs to


class _Stopped(Exception):
    """The pool was told to stop."""


class _TooLong(Exception):
    """The work is worth processes."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def share_of(jobs: int, number: int, of: int) -> range:
    """The jobs that are share `number` (from 0) of `of`: every `of`-th."""
    return range(number, jobs, of)


def spread(
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Sequence[Job],
    workers: int,
    progress: Callable[[int], None],
) -> list[Result]:
    """The results of `stream`, at once."""
    return list(stream(work, jobs, len(jobs), workers, progress))


def stream(
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Iterable[Job],
    number: int,
    workers: int,
    progress: Callable[[int], None],
) -> Iterator[Result]:
    """`work(job, advance)` for each of `number` jobs, with results in the order of the jobs; `progress(n)` is called
    for each n units done. Jobs are taken, and results held, a few a worker.

    `work` is a function of a module and calls `advance(n)`. With one worker, or one job, everything runs in this
    process, and with AUTO what is done in BRIEF seconds: the job that is under way then is done anew by a worker, and
    its units are taken back (`progress(-n)`). The first exception stops the other jobs at their next `advance` and is
    raised. Raises ShardError where a process was killed. A process that hangs for `LIMIT` says where on stderr, and
    ends.
    """
    left, end, under_way = iter(jobs), time.monotonic() + BRIEF, 0

    def advance(units: int) -> None:
        nonlocal under_way
        WATCHDOG.beat()
        progress(units)
        under_way += units
        if workers == AUTO and time.monotonic() > end and min(cores(), number) > 1:
            raise _TooLong

    while workers == AUTO or min(workers, number) <= 1:
        job = next(left, None)
        if job is None:
            return
        under_way = 0
        try:
            with WATCHDOG.within(LIMIT, "one of the shards"):
                result = work(job, advance)
        except _TooLong:
            progress(-under_way)
            left, workers = itertools.chain([job], left), cores()
            break
        yield result
        number -= 1
    # Spawned, not forked: a forked child would inherit the locks of the caller's threads.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Value("b", 0)
    seen = 0
    with ProcessPoolExecutor(
        min(workers, number), context, initializer=_begin, initargs=(done, stop, os.getpid(), LIMIT)
    ) as pool:
        given: deque[Future[Result]] = deque()  # in the order of the jobs
        try:
            while True:
                given.extend(
                    pool.submit(_work, work, job) for job in itertools.islice(left, AHEAD * workers - len(given))
                )
                if not given:
                    return
                wait([one for one in given if not one.done()], timeout=0.2, return_when=FIRST_COMPLETED)
                for one in given:
                    if one.done():
                        one.result()  # or the exception, whoever's turn it is
                progress(done.value - seen)
                seen = done.value
                while given and given[0].done():
                    yield given.popleft().result()
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
