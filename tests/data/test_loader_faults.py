"""Damaged clips, missing shards, killed workers, killed parents, signals: what a loader does about each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gamut.data import loader as module
from gamut.data.batch import PackedBatch
from gamut.data.loader import Loader
from gamut.errors import PlanError, RunError, ShardError
from gamut.plan import plan_epoch
from gamut.processes import Process


@pytest.fixture
def epoch(corpus, policy):
    return plan_epoch(corpus.index.table(), 3, 0, policy("two padded crops"))


def _workers() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.name.startswith("ForkProcess")]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_clips_are_the_same_holes_on_every_split(corpus, tmp_path, epoch, workers: int) -> None:
    damaged = corpus.copy(tmp_path / "set")
    index = damaged.index
    bad = {4: "checksum", 30: "checksum", 47: "truncated"}
    for row, reason in bad.items():
        path, at = index.shard_path(int(index.shard[row])), int(index.offset[row]) + int(index.size[row]) // 2
        with open(path, "r+b") as file:
            if reason == "truncated":
                file.truncate(at)
            else:
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))
    after_the_cut = {
        row: "truncated"
        for row in range(len(index))
        if index.shard[row] == index.shard[47] and index.offset[row] > index.offset[47]
    }
    bad |= after_the_cut
    for world in (1, 2, 4):
        holes = []
        for rank in range(world):
            for step, batches in Loader(index, epoch, rank=rank, world=world, per_forward=1, workers=workers):
                holes += [(step, hole.row, hole.reason) for batch in batches for hole in batch.holes]
                if world == 1:
                    for batch, pack in zip(batches, module.deal(_cost(epoch, step), 1, 1)[0]):
                        corpus.assert_is_plan(batch, epoch, [step * epoch.packs + int(pack[0])], missing=tuple(bad))
        assert {row: reason for _, row, reason in holes} == bad
        assert len(holes) == len(bad)


def _cost(epoch, step: int):
    return epoch.pack_cost[step * epoch.packs : (step + 1) * epoch.packs]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_stops_the_run_with_its_name(corpus, tmp_path, epoch, workers: int) -> None:
    moved = corpus.copy(tmp_path / "set")
    path = moved.index.shard_path(3)
    path.unlink()
    with pytest.raises(ShardError, match=f"could not be read from .*{path.name}.*No such file") as caught:
        list(Loader(moved.index, epoch, rank=0, world=1, per_forward=1, workers=workers))
    assert "Traceback" not in str(caught.value)
    assert not _workers()


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_worker_keep_their_type(corpus, epoch, monkeypatch, workers: int) -> None:
    def planned_wrongly(*args: object) -> PackedBatch:
        raise PlanError("The plan is wrong.")

    def unforeseen(*args: object) -> PackedBatch:
        raise OSError("a fault of the program")

    monkeypatch.setattr(module, "assemble", planned_wrongly)
    with pytest.raises(PlanError) as caught:
        list(Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=workers))
    assert str(caught.value) == "The plan is wrong."
    monkeypatch.setattr(module, "assemble", unforeseen)
    with pytest.raises(OSError, match="a fault of the program") as unknown:
        list(Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=workers))
    assert unknown.traceback  # which holds torch's frames, and must not hold the workers
    assert not _workers()


def test_a_killed_worker_is_an_error_that_says_so(corpus, epoch) -> None:
    steps = iter(Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=2, prefetch=1))
    next(steps)
    before = signal.getsignal(signal.SIGCHLD)
    os.kill(_workers()[0].pid, signal.SIGKILL)
    time.sleep(0.2)  # nothing may be raised here, in the middle of the consumer's own work
    assert signal.getsignal(signal.SIGCHLD) is before
    with pytest.raises(RunError, match=r"worker of process .* died .*lack of memory") as caught:
        list(steps)
    until = (
        time.monotonic() + 15
    )  # one killed in the middle of sending leaves the others waiting: torch ends them after 5 s
    while _workers() and time.monotonic() < until:
        time.sleep(0.05)
    assert not _workers()
    assert caught.value.__cause__ is None  # torch's error would have kept its iterator, and so the workers


@pytest.mark.parametrize("ahead", [True, False])
def test_a_worker_that_is_killed_between_epochs_is_missed_in_the_next(corpus, policy, ahead: bool) -> None:
    epochs = [plan_epoch(corpus.index.table(), 3, number, policy("two padded crops")) for number in range(2)]

    def later(number: int, block: int):
        return epochs[number] if ahead and number < 2 else None

    loader = Loader(corpus.index, epochs[0], rank=0, world=1, per_forward=1, workers=2, prefetch=1, later=later)
    assert len(list(loader)) == epochs[0].steps
    os.kill(_workers()[0].pid, signal.SIGKILL)
    loader.go_on(epochs[1])
    with pytest.raises(RunError, match=r"worker of process .* died"):
        list(loader)
    assert not _workers()


def test_workers_leave_signals_to_their_rank(corpus, epoch, tmp_path) -> None:
    caught: list[int] = []
    numbers = (signal.SIGUSR2, signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in numbers}
    try:
        steps = iter(Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=2))
        seen = [next(steps)[0]]
        for worker in _workers():
            status = Path(f"/proc/{worker.pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Sig"))
            blocked, ignored, handled = (int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt"))
            bit = {number: 1 << (number - 1) for number in numbers}
            assert not blocked & sum(bit.values())
            assert ignored & bit[signal.SIGUSR2]
            assert ignored & bit[signal.SIGINT]
            assert handled & bit[signal.SIGTERM]  # not ignored: what a worker starts would be deaf to it
            assert int(next(s for s in status.splitlines() if s.startswith("Threads")).split()[1]) <= 4
            os.kill(worker.pid, signal.SIGUSR2)
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)  # a preempted job has it in every process
        os.kill(os.getpid(), signal.SIGUSR2)  # the rank still gets its own
        seen += [step for step, _ in steps]
        assert seen == list(range(epoch.steps))
        assert caught == [signal.SIGUSR2]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_workers_end_with_the_iteration(corpus, epoch) -> None:
    for step, _ in Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=2):
        if step == 1:
            assert len(_workers()) == 2
            break
    assert not _workers()
    steps = iter(Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=2))
    next(steps)
    del steps
    assert not _workers()
    following = Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=2, later=lambda number, block: None)
    for _ in following:
        assert len(_workers()) == 2
        break  # preempted: left in the middle
    assert not _workers()


RANK = """
import multiprocessing, sys, time
from gamut.data import loader
from gamut.data.loader import Loader
from gamut.plan import Policy, plan_epoch
from gamut.shards import Index
index = Index.open(sys.argv[1])
if sys.argv[2] == "stuck":  # in the third batch of each worker, as on a disk that does not answer
    assemble, taken = loader.assemble, []
    def slowly(*words):
        taken.append(1)
        time.sleep(120 * (len(taken) > 2))
        return assemble(*words)
    loader.assemble = slowly
epoch = plan_epoch(index.table(), 3, 0, Policy(packs=4, clips=3, tokens=None, views=2, crop_frames=48))
steps = iter(Loader(index, epoch, rank=0, world=1, per_forward=1, workers=3, prefetch=1))
next(steps)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if sys.argv[2] != "leave":
    time.sleep(120)
"""


@pytest.mark.parametrize("how", ["stay", "stuck"])
def test_workers_do_not_outlive_a_killed_rank(corpus, gone, how: str) -> None:
    """Neither those that wait for work nor those that are at it."""
    rank = subprocess.Popen([sys.executable, "-c", RANK, str(corpus.folder), how], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    workers = [Process.of(int(pid)) for pid in rank.stdout.readline().split()]
    assert len(workers) == 3
    assert all(worker is not None and worker.alive() for worker in workers)
    shared = set(os.listdir("/dev/shm"))
    rank.kill()
    rank.wait()
    assert all(gone(worker, 10) for worker in workers if worker is not None)
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if name.startswith("torch")]


def test_a_rank_that_ends_in_the_middle_of_an_epoch_takes_its_workers_with_it(corpus, gone) -> None:
    began = time.monotonic()
    line = subprocess.run(
        [sys.executable, "-c", RANK, str(corpus.folder), "leave"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    workers = [Process.of(int(pid)) for pid in line.split()]
    assert len(workers) == 3
    assert all(worker is None or gone(worker, 1) for worker in workers)
    assert time.monotonic() - began < 30
