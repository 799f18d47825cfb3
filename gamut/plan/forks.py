"""Work shared out to forks of this process: what somebody waits for, and pure Python is slow at."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np

Arrays = list[np.ndarray]  # int64, one-dimensional
Job = Callable[[], Arrays]


def shared_out(jobs: Sequence[Job], processes: int) -> list[Arrays]:
    """What each of `jobs` returns, in their order, computed by so many processes: this one, and forks of it.

    Job i goes to process i % processes. A fork that dies leaves its jobs to this process, so the results never depend
    on the number of processes; one whose parent is gone ends when it has computed its jobs. To be called where no
    other thread holds a lock that the jobs need.

    >>> [a.tolist() for [a] in shared_out([lambda: [np.arange(2)], lambda: [np.arange(3)]], processes=2)]
    [[0, 1], [0, 1, 2]]
    """
    processes = max(1, min(processes, len(jobs)))
    forks = [_fork(jobs[mine::processes]) for mine in range(1, processes)]
    results: list[Arrays | None] = [None] * len(jobs)
    results[::processes] = [job() for job in jobs[::processes]]
    for mine, (process, answers) in enumerate(forks, start=1):
        with answers:
            for number in range(mine, len(jobs), processes):
                results[number] = _read(answers)
        os.waitpid(process, 0)
    return [job() if result is None else result for job, result in zip(jobs, results)]


def _fork(jobs: Sequence[Job]) -> tuple[int, BinaryIO]:
    """A child that computes `jobs`, and the pipe on which it answers."""
    end, start = os.pipe()
    process = os.fork()
    if process:
        os.close(start)
        return process, os.fdopen(end, "rb")
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a parent that is gone needs no answer
        os.close(end)
        results = [job() for job in jobs]  # all of them first: the parent reads when it has done its own
        with os.fdopen(start, "wb") as answers:
            for result in results:
                arrays = [np.ascontiguousarray(array, np.int64) for array in result]
                answers.write(struct.pack(f"<{1 + len(arrays)}q", len(arrays), *map(len, arrays)))
                answers.writelines(array.data for array in arrays)
    finally:
        os._exit(0)  # whatever happened: what belongs to the parent is not flushed or torn down twice


def _read(answers: BinaryIO) -> Arrays | None:
    """The next answer; None where its process died before it was whole."""
    head = answers.read(8)
    if len(head) < 8:
        return None
    (count,) = struct.unpack("<q", head)
    sizes = np.frombuffer(answers.read(8 * count), np.int64).tolist()
    pieces = [answers.read(8 * size) for size in sizes]
    if len(sizes) < count or any(len(piece) < 8 * size for piece, size in zip(pieces, sizes)):
        return None
    return [np.frombuffer(piece, np.int64) for piece in pieces]
