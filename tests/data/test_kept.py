"""Plans of large sets on disk, a block at a time: the one that is needed and the next, whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from gamut.data.ahead import Ahead
from gamut.errors import PlanError
from gamut.plan import Clips, Epoch, Held, Policy, plan_block
from gamut.plan.blocks import plan_in_blocks
from gamut.plan.epoch import OF_BLOCKS
from tests.clips import make_clips

from .test_plans import POLICY, assert_same, wait_for

BLOCKS = replace(POLICY, max_clips=4, block=30)  # 24 draws fill a step at most


@pytest.fixture
def clips() -> Clips:
    return make_clips(200)


def of_blocks(clips: Clips, number: int, policy: Policy = BLOCKS) -> list[Epoch]:
    return plan_in_blocks(Held(clips), 5, number, policy)


def follow(plans: Ahead, number: int) -> list[Epoch]:
    """The blocks of an epoch, as a run takes them."""
    blocks = [plans.take(number)]
    while not blocks[-1].last:
        blocks.append(plans.take(number, blocks[-1].end))
    return blocks


def assert_blocks(found: list[Epoch], expected: list[Epoch]) -> None:
    with_steps = [plan for plan in expected if plan.steps]
    assert [plan.block for plan in found] == [plan.block for plan in with_steps]
    for one, two in zip(found, with_steps):
        assert_same(one, two)
        assert all(getattr(one, name) == getattr(two, name) for name in OF_BLOCKS)


@pytest.mark.parametrize("inline", [False, True])
def test_the_next_block_is_planned_while_one_runs(clips: Clips, tmp_path: Path, monkeypatch, inline: bool) -> None:
    monkeypatch.setattr("gamut.data.ahead.INLINE_CLIPS", len(clips) if inline else 0)
    policy = replace(BLOCKS, block=60)
    with Ahead(tmp_path, clips, 5, policy, epochs=2) as plans:
        plans.begin()
        number, step = 0, 0
        for expected in [*of_blocks(clips, 0, policy), *of_blocks(clips, 1, policy)]:
            if expected.number > number:
                number, step = expected.number, 0
            if (number, expected.block) != (0, 0):
                wait_for(plans.path(number, expected.block))
                assert_blocks([plans.planned(number, expected.block)], [expected])
            assert_blocks([plans.take(number, step)], [expected])
            step = expected.end
        assert expected.block > 1
        assert_blocks([plans.take(1, step)], [expected])  # all steps are taken: what is left is the epoch's end
        kept = [f"epoch-00001-block-{block:05d}" for block in (expected.block - 1, expected.block)]
        assert sorted(p.name for p in plans.folder.glob("epoch-*/")) == kept
        assert plans.planned(2, 0) is None
        sizes = [path.stat().st_size for path in plans.folder.glob("*.json")]
        assert len(sizes) == 2 * expected.blocks
        assert max(sizes) < 4000


def test_a_run_that_goes_on_plans_the_block_it_needs_and_none_before_it(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ahead(tmp_path, clips, 5, BLOCKS, epochs=1) as plans:
        found = follow(plans, 0)
    assert_blocks(found, of_blocks(clips, 0))
    made = []
    monkeypatch.setattr("gamut.data.kept.plan_block", lambda *given: made.append(given[4]) or plan_block(*given))
    for folder in plans.folder.glob("epoch-*/"):
        shutil.rmtree(folder)
    middle = found[len(found) // 2]
    with Ahead(tmp_path, clips, 5, BLOCKS, epochs=1, lead=False) as again:
        assert_blocks([again.take(0, middle.end - 1)], [middle])
        assert made == [middle.block]
        assert_blocks([again.take(0, middle.first_step)], [middle])
        assert made == [middle.block]


def test_where_all_is_gone_the_blocks_before_are_planned_again(clips: Clips, tmp_path: Path) -> None:
    expected = of_blocks(clips, 0)
    with Ahead(tmp_path, clips, 5, BLOCKS, epochs=1, lead=False) as plans:
        assert_blocks([plans.take(0, expected[-1].end)], expected[-1:])
        shutil.rmtree(plans.folder)
        middle = [plan for plan in expected if plan.steps][2]
        assert_blocks([plans.take(0, middle.first_step)], [middle])
        plans.kept.border_path(0, middle.block).unlink()
        assert_blocks([plans.take(0, middle.first_step)], [middle])


def test_a_damaged_border_is_named(clips: Clips, tmp_path: Path) -> None:
    with Ahead(tmp_path, clips, 5, BLOCKS, epochs=1, lead=False) as plans:
        second = [plan for plan in of_blocks(clips, 0) if plan.steps][1]
        plans.take(0, second.first_step)
        path = plans.kept.border_path(0, second.block)
        path.write_text(path.read_text().replace('"steps": ', '"steps": 1'))
        with pytest.raises(PlanError, match=f"(?s){path}.*digest.*Remove it and the folder {path.stem}"):
            plans.take(0, 10_000)


def test_of_many_ranks_one_plans_each_block(clips: Clips, tmp_path: Path) -> None:
    with (
        Ahead(tmp_path, clips, 5, BLOCKS, epochs=1) as lead,
        Ahead(tmp_path, clips, 5, BLOCKS, epochs=1, lead=False) as follower,
    ):
        step = 0
        while True:
            one, two = follower.take(0, step), lead.take(0, step)
            assert_same(one, two)
            if one.last:
                break
            step = one.end
        assert step > 0


@pytest.mark.parametrize("call", [1, 3, 4, 17, 20, 40])
def test_a_planner_of_blocks_killed_anywhere_leaves_what_goes_on(clips: Clips, tmp_path: Path, call: int) -> None:
    expected = of_blocks(clips, 0)
    third = [plan for plan in expected if plan.steps][2]

    def killed() -> None:
        calls = 0
        original = os.fsync

        def counted(*arguments):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        os.fsync = counted
        Ahead(tmp_path, clips, 5, BLOCKS, epochs=1, lead=False).take(0, third.first_step)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    with Ahead(tmp_path, clips, 5, BLOCKS, epochs=1) as plans:
        assert_blocks(follow(plans, 0), expected)
