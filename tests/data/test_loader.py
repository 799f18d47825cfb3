"""What a loader gives is the plan's, whatever the ranks, the workers and the step it starts at."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections import Counter

import numpy as np
import pytest
import torch

from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch
from gamut.data.loader import Loader
from gamut.data.plans import load_epoch, save_epoch
from gamut.errors import PlanError
from gamut.plan import Epoch, deal, plan_epoch

WORLDS = (1, 2, 4)


def _draws(batches: list[PackedBatch]) -> Counter:
    return Counter(
        (int(clip), int(draw))
        for batch in batches
        for clip, draw in zip(batch.clip_id.numpy().view(np.uint64), batch.draw)
    )


def _planned(epoch: Epoch, step: int) -> Counter:
    first, last = epoch.pack_offset[step * epoch.packs], epoch.pack_offset[(step + 1) * epoch.packs]
    return Counter(zip(epoch.clip_id[first:last].tolist(), epoch.draw[first:last].tolist()))


@pytest.mark.parametrize("workers", [0, 2, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 4))])
@pytest.mark.parametrize("name", ["two padded crops", "native lengths"])
def test_every_step_has_the_planned_clips_at_any_split(corpus, policy, name: str, workers: int) -> None:
    clips = corpus.index.table()
    for number in range(3):
        epoch = plan_epoch(clips, 11, number, policy(name))
        whole: Counter = Counter()
        for world in WORLDS:
            ranks = [
                list(Loader(corpus.index, epoch, rank=rank, world=world, per_forward=1 + number, workers=workers))
                for rank in range(world)
            ]
            for step in range(epoch.steps):
                assert {part[step][0] for part in ranks} == {step}
                batches = [batch for part in ranks for batch in part[step][1]]
                run = {len(part[step][1]) for part in ranks}  # as many on every rank, none empty on all of them
                assert len(run) == 1
                assert 1 <= max(run) <= -(-epoch.packs // (world * (1 + number)))
                assert all(any(part[step][1][n].clips for part in ranks) for n in range(max(run)))
                assert _draws(batches) == _planned(epoch, step)
                if world == 1:
                    whole += _draws(batches)
        assert Counter(clip for clip, _ in whole.elements()) == Counter(clips.clip_id.tolist())


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("name", ["native lengths", "three crops at mixed resolution", "in order"])
def test_micro_batches_are_the_dealt_packs(corpus, policy, name: str, workers: int) -> None:
    epoch = plan_epoch(corpus.index.table(), 2, 0, policy(name))
    for rank in range(3):
        loader = Loader(corpus.index, epoch, rank=rank, world=3, per_forward=1, workers=workers)
        for step, batches in loader:
            first = step * epoch.packs
            dealt = deal(epoch.pack_cost[first : first + epoch.packs], 3, 1)[rank]
            assert len(batches) == loader.forwards(step)
            for batch, packs in zip(batches, dealt):
                corpus.assert_is_plan(batch, epoch, [first + pack for pack in packs if pack >= 0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_in_the_middle_is_the_tail_of_the_whole(corpus, equal, policy, workers: int) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 2, policy("two padded crops"))
    whole = list(Loader(corpus.index, epoch, rank=1, world=2, per_forward=1, workers=workers))
    for start in range(epoch.steps + 1):
        loader = Loader(corpus.index, epoch, rank=1, world=2, per_forward=1, start_step=start, workers=workers)
        tail = list(loader)
        assert len(loader) == len(tail) == epoch.steps - start
        for (step, batches), (wanted, reference) in zip(tail, whole[start:]):
            assert step == wanted
            assert all(equal(a, b) for a, b in zip(batches, reference, strict=True))
    with pytest.raises(ValueError, match="not one of"):
        Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, start_step=epoch.steps + 1)


def test_a_start_reads_nothing_of_what_lies_before(corpus, policy, tmp_path) -> None:
    moved = corpus.copy(tmp_path / "set")
    epoch = plan_epoch(moved.index.table(), 3, 2, policy("two padded crops"))
    last = epoch.steps - 1
    rows = epoch.row[epoch.pack_offset[last * epoch.packs] :]
    for shard in set(moved.index.shard.tolist()) - set(moved.index.shard[rows].tolist()):
        moved.index.shard_path(shard).unlink()
    assert [s for s, _ in Loader(moved.index, epoch, rank=0, world=1, per_forward=2, start_step=last, workers=0)] == [
        last
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ahead", [True, False])
def test_one_loader_gives_all_epochs_as_one_each_would(corpus, equal, policy, workers: int, ahead: bool) -> None:
    """Its workers stay, whether the next epoch is planned in time or not; a resumed epoch is followed by whole ones."""
    epochs = [plan_epoch(corpus.index.table(), 3, number, policy("two padded crops")) for number in range(4)]
    here, taken, asked = os.getpid(), 1, []

    def later(number: int, block: int) -> Epoch | None:
        if os.getpid() == here:
            asked.append(number)
        known = len(epochs) if ahead or os.getpid() != here else taken
        return epochs[number] if number < known else None

    loader = Loader(
        corpus.index, epochs[0], rank=1, world=2, per_forward=1, start_step=2, workers=workers, prefetch=1, later=later
    )
    served = []
    for epoch in epochs:
        taken = epoch.number + 1
        if epoch.number:
            loader.go_on(epoch)
        alone = Loader(
            corpus.index, epoch, rank=1, world=2, per_forward=1, start_step=2 if epoch is epochs[0] else 0, workers=0
        )
        assert len(loader) == len(alone)
        for (step, batches), (wanted, reference) in zip(loader, alone, strict=True):
            assert step == wanted
            assert all(equal(a, b) for a, b in zip(batches, reference, strict=True))
        served.append({child.pid for child in multiprocessing.active_children()})
    assert [len(pids) for pids in served] == [workers] * 4
    assert len(set().union(*served)) == workers
    assert asked == ([1, 2, 3, 4] if workers else [])
    loader.close()
    assert not multiprocessing.active_children()


def test_a_plan_that_is_gone_before_a_worker_opens_it_is_said(corpus, policy) -> None:
    epochs = [plan_epoch(corpus.index.table(), 3, number, policy("two padded crops")) for number in range(2)]
    here = os.getpid()

    def later(number: int, block: int) -> Epoch | None:
        return epochs[number] if number < 2 and os.getpid() == here else None

    loader = Loader(corpus.index, epochs[0], rank=0, world=1, per_forward=1, workers=1, later=later)
    assert len(list(loader)) == epochs[0].steps
    loader.go_on(epochs[1])
    with pytest.raises(PlanError, match="epoch 1 was there when its reading began, and is gone"):
        list(loader)
    assert not multiprocessing.active_children()


def test_a_saved_plan_loads_alike(corpus, equal, policy, tmp_path) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, policy("native lengths"))
    save_epoch(epoch, tmp_path / "plan")
    mapped = load_epoch(tmp_path / "plan")
    for (_, a), (_, b) in zip(
        Loader(corpus.index, epoch, rank=0, world=1, per_forward=2, workers=0),
        Loader(corpus.index, mapped, rank=0, world=1, per_forward=2, workers=2),
        strict=True,
    ):
        assert all(equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_no_hidden_generator_is_touched(corpus, policy, workers: int) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, policy("two padded crops"))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    list(Loader(corpus.index, epoch, rank=0, world=1, per_forward=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_batches_that_are_kept_cost_one_descriptor_each(corpus, equal, policy) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, policy("two padded crops"))
    before = len(os.listdir("/proc/self/fd"))
    kept = list(Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=2))
    batches = [batch for _, step in kept for batch in step]
    # One a batch, not one for each of its dozen tensors; a few more are torch's own, opened once in this process.
    assert len(os.listdir("/proc/self/fd")) - before < 2 * len(batches)
    for (step, found), (_, wanted) in zip(
        kept, Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=0), strict=True
    ):
        assert all(equal(a, b) for a, b in zip(found, wanted, strict=True)), f"step {step}"
    del kept, batches, found
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_waiting_is_measured(corpus, policy, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def slow(*args: object) -> PackedBatch:
        time.sleep(0.05)
        return assemble(*args)

    monkeypatch.setattr("gamut.data.loader.assemble", slow)
    epoch = plan_epoch(corpus.index.table(), 3, 0, policy("in order"))
    loader = Loader(corpus.index, epoch, rank=0, world=1, per_forward=3, workers=0)
    steps = 0
    for _ in loader:
        time.sleep(0.01)  # the consumer's own time is not waiting
        steps += 1
    assert 0.05 * steps <= loader.waited


def test_ranks_outside_the_world_are_refused(corpus, policy) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, policy("in order"))
    with pytest.raises(ValueError, match="rank 2 is not one of a world of 2"):
        Loader(corpus.index, epoch, rank=2, world=2, per_forward=1)
