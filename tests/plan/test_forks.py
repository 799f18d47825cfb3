from __future__ import annotations

import contextlib
import doctest
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from gamut.plan import Policy, forks, plan_epoch
from gamut.plan.epoch import ARRAYS
from gamut.plan.forks import shared_out

from .conftest import MakeClips

A_PIPE = 1 << 16  # bytes that fit into a pipe nobody reads


def job(number: int) -> Callable[[], list[np.ndarray]]:
    return lambda: [np.arange(number * A_PIPE, dtype=np.int64), np.array([number, os.getpid()], np.int64)]


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_results_come_in_order_from_as_many_processes(processes: int) -> None:
    results = shared_out([job(number) for number in range(5)], processes)
    assert [(len(many), few[0]) for many, few in results] == [(number * A_PIPE, number) for number in range(5)]
    assert len({int(few[1]) for _, few in results}) == min(processes, 5)


@pytest.mark.parametrize("failing", ["killed", "raises"])
def test_a_fork_that_fails_leaves_its_jobs_to_the_caller(failing: str) -> None:
    me = os.getpid()

    def fails_elsewhere() -> list[np.ndarray]:
        if os.getpid() != me:
            if failing == "raises":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGKILL)
        return [np.array([7])]

    results = shared_out([job(0), job(1), job(2), fails_elsewhere], 2)
    assert [int(result[-1][0]) for result in results] == [0, 1, 2, 7]
    with contextlib.suppress(ChildProcessError):  # no child at all
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)  # none that has ended and is not waited for


def test_no_jobs() -> None:
    assert shared_out([], 4) == []


@pytest.mark.parametrize("locality", ["none", "node"])
def test_a_plan_is_the_same_however_many_processes_make_it(make_clips: MakeClips, locality: str) -> None:
    clips = make_clips(3000)
    policy = Policy(packs=12, tokens=512, max_frames=992, window=256, locality=locality)
    alone, shared = plan_epoch(clips, 3, 1, policy), plan_epoch(clips, 3, 1, policy, processes=3)
    assert policy.lanes > 3
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(shared, name), getattr(alone, name))


def test_the_examples_hold() -> None:
    assert doctest.testmod(forks).failed == 0
