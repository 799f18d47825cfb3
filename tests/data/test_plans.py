"""Plans on disk: whole or not at all, never another's, planned once by whoever comes first."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gamut.data.ahead import Ahead, plan_on
from gamut.data.plans import ON_DISK, ensure_epoch, load_epoch, save_epoch
from gamut.errors import PlanError
from gamut.plan import Clips, Epoch, Policy, plan_epoch, plan_fingerprint
from gamut.plan.epoch import ARRAYS, OPTIONAL, SCALARS
from tests.clips import make_clips

POLICY = Policy(packs=6, tokens=1300, views=2, crop_frames=96, pad=False)
FULL = replace(POLICY, pools=(1, 2), drop_tokens=0.1, mixup=0.5, local_views=1, local_frames=32, roll=0.5)
FILES = ["plan.json", *(f"{ON_DISK.get(name, name)}.npy" for name in ARRAYS)]


@pytest.fixture
def clips() -> Clips:
    return make_clips(200)


@pytest.fixture
def epoch(clips: Clips) -> Epoch:
    return plan_epoch(clips, 0, 3, POLICY)


def assert_same(one: Epoch, two: Epoch) -> None:
    for name in (*SCALARS, "fingerprint"):
        assert getattr(one, name) == getattr(two, name)
    for name in OPTIONAL:
        assert (getattr(one, name) is None) == (getattr(two, name) is None)
        assert np.array_equal(getattr(one, name), getattr(two, name))
    for name in ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == getattr(two, name).dtype


def test_a_loaded_epoch_is_the_saved_one_mapped(clips: Clips, epoch: Epoch, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "epoch"
    save_epoch(epoch, folder)
    expect = plan_fingerprint(clips, 0, POLICY) | {"epoch": "3"}
    loaded = load_epoch(folder, expect)
    assert_same(loaded, epoch)
    assert_same(load_epoch(folder, verify=False), epoch)
    assert isinstance(loaded.start.base, np.memmap)
    assert not loaded.start.flags.writeable
    assert loaded.summary() == epoch.summary()
    assert [p.name for p in folder.parent.iterdir()] == ["epoch"]  # nothing temporary stays


def test_what_only_some_plans_have_is_saved_too(clips: Clips, tmp_path: Path) -> None:
    full = plan_epoch(clips, 0, 3, FULL)
    save_epoch(full, tmp_path / "epoch")
    assert_same(load_epoch(tmp_path / "epoch"), full)
    assert all(getattr(full, name) is not None for name in OPTIONAL)
    (tmp_path / "epoch" / "partner.npy").unlink()
    with pytest.raises(PlanError, match="partner"):
        load_epoch(tmp_path / "epoch")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "removed"])
def test_a_damaged_file_is_caught(epoch: Epoch, tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "epoch"
    save_epoch(epoch, folder)
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0x80
    path.write_bytes({"truncated": content[:-1], "emptied": b"", "flipped": content, "removed": b""}[damage])
    if damage == "removed":
        path.unlink()
    with pytest.raises(PlanError, match=f"(?s){folder}.*Remove {folder}"):
        load_epoch(folder)


def test_another_plan_is_refused_by_the_fields_that_differ(clips: Clips, epoch: Epoch, tmp_path: Path) -> None:
    save_epoch(epoch, tmp_path / "epoch")
    other = plan_fingerprint(clips, 1, Policy(packs=8, tokens=1300, views=2, crop_frames=96, pad=False))
    with pytest.raises(PlanError, match=r"differs in seed \(0, now 1\), packs \(6, now 8\)\."):
        load_epoch(tmp_path / "epoch", other | {"epoch": "3"})
    with pytest.raises(PlanError, match=r"epoch \(3, now 4\)"):
        load_epoch(tmp_path / "epoch", plan_fingerprint(clips, 0, POLICY) | {"epoch": "4"})


def test_what_cannot_be_loaded_or_saved_is_said(epoch: Epoch, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"lacks plan\.json"):
        load_epoch(tmp_path / "none")
    save_epoch(epoch, tmp_path / "epoch")
    with pytest.raises(PlanError, match="cannot be saved"):
        save_epoch(epoch, tmp_path / "epoch")
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="cannot be saved"):
        save_epoch(epoch, tmp_path / "file" / "epoch")
    with pytest.raises(PlanError, match="cannot be saved"):
        ensure_epoch(tmp_path / "file" / "epoch", lambda: epoch)
    about = json.loads((tmp_path / "epoch" / "plan.json").read_text())
    (tmp_path / "epoch" / "plan.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(PlanError, match="format 99"):
        load_epoch(tmp_path / "epoch")


def _ensure(folder: Path, clips: Clips, planned: Path, barrier) -> None:
    def make() -> Epoch:
        (planned / str(os.getpid())).touch()
        time.sleep(0.2)
        return plan_epoch(clips, 0, 3, POLICY)

    barrier.wait()
    assert ensure_epoch(folder, make).draws == len(clips)


def test_of_many_ranks_one_plans(clips: Clips, epoch: Epoch, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    (tmp_path / "planned").mkdir()
    barrier = context.Barrier(6)
    arguments = (tmp_path / "plan" / "epoch", clips, tmp_path / "planned", barrier)
    ranks = [context.Process(target=_ensure, args=arguments) for _ in range(6)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert len(list((tmp_path / "planned").iterdir())) == 1
    assert_same(load_epoch(tmp_path / "plan" / "epoch"), epoch)


@pytest.mark.parametrize("call", [1, 6, 12, 13, 14, 15, 16, 17])
def test_a_planner_killed_while_it_saves_leaves_no_plan_and_no_rubbish(
    clips: Clips, epoch: Epoch, tmp_path: Path, call: int
) -> None:
    folder = tmp_path / "epoch"

    def killed() -> None:
        calls = 0
        original = {"fsync": os.fsync, "rename": os.rename}

        def count(name: str):
            def counted(*arguments):
                nonlocal calls
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original[name](*arguments)

            return counted

        os.fsync, os.rename = count("fsync"), count("rename")
        ensure_epoch(folder, lambda: epoch)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert (child.exitcode == -signal.SIGKILL) == (call <= 16)  # 11 arrays, description, folder twice, rename, parent
    assert_same(ensure_epoch(folder, lambda: epoch), epoch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch", "plan.lock"]


def test_a_lock_outlives_neither_its_holder_nor_a_child_forked_meanwhile(clips: Clips, tmp_path: Path) -> None:
    children = []

    def make() -> Epoch:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))  # holds a copy of the lock
        child.start()
        children.append(child)
        return plan_epoch(clips, 0, 3, POLICY)

    try:
        ensure_epoch(tmp_path / "one", make)
        ensure_epoch(tmp_path / "two", lambda: plan_epoch(clips, 0, 3, POLICY))  # would wait for ever
    finally:
        for child in children:
            child.kill()
            child.join()


def test_where_locks_do_not_work_the_rename_decides(clips: Clips, epoch: Epoch, tmp_path: Path, monkeypatch) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_lock)

    def make() -> Epoch:
        save_epoch(epoch, tmp_path / "epoch")  # another node was quicker
        return plan_epoch(clips, 0, 3, POLICY)

    assert_same(ensure_epoch(tmp_path / "epoch", make), epoch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch", "plan.lock"]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize("inline", [False, True])
def test_the_next_epoch_is_planned_while_one_runs(clips: Clips, tmp_path: Path, monkeypatch, inline: bool) -> None:
    monkeypatch.setattr("gamut.data.ahead.INLINE_CLIPS", len(clips) if inline else 0)
    with Ahead(tmp_path, clips, 5, POLICY, epochs=4) as plans:
        for number in range(4):
            if number:
                wait_for(plans.path(number))
                found = plans.planned(number)
                assert found is not None
                assert_same(found, plan_epoch(clips, 5, number, POLICY))
                if not inline:
                    monkeypatch.setattr("gamut.data.kept.plan_epoch", None)  # it must not be needed any more
            assert_same(plans.take(number), plan_epoch(clips, 5, number, POLICY))
        assert sorted(p.name for p in plans.folder.glob("epoch-*")) == ["epoch-00002", "epoch-00003"]
        assert_same(plans.take(3), plan_epoch(clips, 5, 3, POLICY))
        assert plans.planned(4) is None
        (plans.path(3) / "row.npy").write_bytes(b"")
        assert plans.planned(3) is None  # `take` says what is wrong with it, when it is that epoch's turn


def test_a_follower_and_another_plan_share_the_folder_in_peace(clips: Clips, tmp_path: Path) -> None:
    other = Policy(packs=2, clips=3)
    with (
        Ahead(tmp_path, clips, 5, POLICY, epochs=2) as lead,
        Ahead(tmp_path, clips, 5, POLICY, epochs=2, lead=False) as follower,
        Ahead(tmp_path, clips, 5, other, epochs=1, lead=False) as stranger,
    ):
        assert_same(follower.take(1), lead.take(1))
        assert_same(stranger.take(0), plan_epoch(clips, 5, 0, other))


def test_an_error_of_the_plan_reaches_the_run(clips: Clips, tmp_path: Path) -> None:
    with (
        Ahead(tmp_path, clips, 0, Policy(packs=1, tokens=16), epochs=2) as plans,
        pytest.raises(PlanError, match="budget of 16"),
    ):
        plans.take(0)


def test_a_planner_that_dies_is_replaced(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gamut.data.ahead.INLINE_CLIPS", 0)
    with Ahead(tmp_path, clips, 0, POLICY, epochs=3) as plans:
        plans.take(0)
        assert plans._process is not None
        plans._process.kill()
        assert_same(plans.take(1), plan_epoch(clips, 0, 1, POLICY))


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_that_is_gone_leaves_nobody_planning(tmp_path: Path, processes: int) -> None:
    code = """
import sys, time, numpy as np
from gamut.data.ahead import Ahead
from gamut.plan import Clips, Policy
n = 1_500_000
clips = Clips(np.arange(n), np.arange(n) * 77 + 1, np.arange(n) // 999, 16000 + np.arange(n) % 160000, np.arange(n))
plans = Ahead(sys.argv[1], clips, 0, Policy(packs=64, tokens=2048), epochs=2)
plans._start(1, 0, int(sys.argv[2]))  # seconds of work
print(plans._process.pid, plans.path(1), flush=True)
time.sleep(60)
"""
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(processes)], stdout=subprocess.PIPE)
    assert run.stdout is not None
    pid, path = run.stdout.readline().decode().split()
    planners = [int(pid)]
    expected = 1 if processes == 1 else 1 + processes
    until = time.monotonic() + 60
    while len(planners) < expected and time.monotonic() < until:
        planners = [int(pid), *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        time.sleep(0.02)
    time.sleep(0.5)
    assert all(map(_alive, planners))
    assert len(planners) == expected
    run.kill()
    run.wait()
    run.stdout.close()
    until = time.monotonic() + 10
    while any(map(_alive, planners)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(_alive, planners))
    assert not Path(path).exists()  # it did not just finish


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("locality", ["none", "node"])
def test_a_plan_is_the_same_however_many_processes_make_it(locality: str) -> None:
    clips = make_clips(3000)
    policy = Policy(packs=12, tokens=512, max_frames=992, window=256, locality=locality)
    assert policy.lanes > 3
    assert_same(plan_on(3, partial(plan_epoch, clips, 3, 1, policy)), plan_epoch(clips, 3, 1, policy))


def test_where_a_process_that_packs_is_killed_the_plan_is_the_same(clips: Clips, monkeypatch) -> None:
    monkeypatch.setattr("gamut.data.ahead.watch_ancestors", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    assert_same(plan_on(2, partial(plan_epoch, clips, 0, 3, POLICY)), plan_epoch(clips, 0, 3, POLICY))


def test_the_process_that_plans_ahead_loads_no_torch() -> None:
    program = "import sys, gamut.data.ahead; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "gamut.plan" in loaded
    assert not {"torch", "omegaconf", "soundfile"}.intersection(loaded)


def test_a_plan_saved_by_an_earlier_version_is_mapped_and_is_the_plan_of_today() -> None:
    clips = make_clips(20)
    saved = load_epoch(Path(__file__).parent / "old_plan", plan_fingerprint(clips, 0, FULL) | {"epoch": "3"})
    assert_same(saved, plan_epoch(clips, 0, 3, FULL))
