"""Work that is brief is done in this process, and what takes longer by others, with the same results in their order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from gamut.shards import pool

Found = tuple[int, int, int]  # (job, process, units)


def work(job: tuple[int, float], advance: Callable[[int], None]) -> Found:
    """Of a job (number, seconds): a third of them a unit."""
    number, seconds = job
    for _ in range(3):
        time.sleep(seconds / 3)
        advance(1)
    return number, os.getpid(), 3


def done(jobs: list[tuple[int, float]], workers: int) -> tuple[list[Found], int]:
    """(what was found, the units that progress ends at)."""
    told: list[int] = []
    return pool.spread(work, jobs, workers, told.append), sum(told)


def test_what_is_brief_needs_no_processes() -> None:
    found, units = done([(number, 0.0) for number in range(50)], pool.AUTO)
    assert found == [(number, os.getpid(), 3) for number in range(50)]
    assert units == 150


def test_what_takes_longer_is_handed_over_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BRIEF", 0.1)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    found, units = done([(number, 0.06 if number < 9 else 0.0) for number in range(12)], pool.AUTO)
    assert [number for number, *_ in found] == list(range(12))
    here = [process == os.getpid() for _, process, _ in found]
    assert here[0]
    assert here == sorted(here, reverse=True)
    assert not here[-1]
    assert units == 36


def test_one_core_or_one_job_has_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BRIEF", 0.0)
    assert done([(0, 0.1)], pool.AUTO)[0] == [(0, os.getpid(), 3)]
    monkeypatch.setattr(pool, "cores", lambda: 1)
    assert done([(0, 0.1), (1, 0.1)], pool.AUTO)[0] == [(0, os.getpid(), 3), (1, os.getpid(), 3)]
