"""Training over the borders of blocks, on real recordings: nobody can tell by the steps that there are any."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from consumers import consume, consumed
from ranks import Ranks, run
from test_resume import assert_same_end
from toy import toy_recipe

from gamut.plan import Held, in_blocks
from gamut.plan.blocks import plan_in_blocks
from gamut.recipe import schema
from gamut.recipe.policy import training_policy
from gamut.shards import Index
from gamut.shards.__main__ import main as shards

EPOCHS, CLIPS = 2, 60


@pytest.fixture(scope="module")
def digits(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 spoken digits in shards of 7."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "digits"
    files = sorted((shared_data / "fsdd").rglob("*.wav"))
    for file in files[:: len(files) // CLIPS][:CLIPS]:
        (source / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, source / file.parent.name / file.name)
    line = ["convert", "folder", str(source), str(folder), "--clips-per-shard", "7", "--workers", "1"]
    assert shards(line) == 0
    return folder


def recipe_of(workers: int, **plan: object) -> schema.Recipe:
    recipe = toy_recipe(
        epochs=EPOCHS,
        step=schema.Step(packs=2, clips=3),
        views=schema.Views(count=2, frames=48),
        checkpoint=schema.Checkpoint(every_epochs=0.3, every_minutes=1e9, keep=3),
        plan=schema.PlanOptions(**({"block": 12} | plan)),
    )
    return replace(recipe, loader=schema.Loader(workers=workers, prefetch=1))


def planned(folder: Path, recipe: schema.Recipe) -> dict[int, Counter]:
    """Step of the run -> the (epoch, clip id, draw) of it."""
    table, policy = Index.open(folder).table(), training_policy(recipe)
    assert in_blocks(len(table), policy)
    steps: dict[int, Counter] = {}
    for number in range(EPOCHS):
        blocks = plan_in_blocks(Held(table), recipe.seed, number, policy)
        assert sum(plan.steps > 0 for plan in blocks) >= 3
        for plan in blocks:
            for step in range(plan.first_step, plan.end):
                rows = slice(*(at - plan.first_draw for at in (plan.draws_before(step), plan.draws_before(step + 1))))
                clips = zip(plan.clip_id[rows].tolist(), plan.draw[rows].tolist())
                steps[len(steps)] = Counter((number, *clip) for clip in clips)
    return steps


@pytest.mark.parametrize(
    ("workers", "size"),
    [
        (2, 2),
        pytest.param(0, 2, marks=pytest.mark.long),
        *(pytest.param(workers, size, marks=pytest.mark.long) for workers in (0, 1, 4) for size in (1, 2, 4)),
    ],
)
def test_killed_at_borders_and_between_it_ends_as_if_it_never_was(
    digits: Path, tmp_path: Path, workers: int, size: int
) -> None:
    recipe = recipe_of(workers)
    expected = run(size, consume, tmp_path / "reference", digits, recipe, 0)
    steps = planned(digits, recipe)
    assert len(steps) == EPOCHS * CLIPS // 6
    assert {step: Counter(clips) for step, clips in consumed(tmp_path / "reference").items()} == steps
    folder = tmp_path / "run"
    for attempt, (step, rank, how) in enumerate([(1, 1, "applied"), (4, 0, "prepare"), (11, 1, "applied")]):
        assert None in Ranks(size, consume, folder, digits, recipe, attempt, (step, rank % size, how)).wait()
        if attempt == 1:  # what is planned may go, too
            shutil.rmtree(folder / "plan")
    answers = run(size, consume, folder, digits, recipe, 3)
    assert_same_end(folder, answers, tmp_path / "reference", expected, f"{workers} workers, {size} ranks")
    assert consumed(folder) == consumed(tmp_path / "reference")


@pytest.mark.long
def test_a_world_that_shrinks_and_grows_takes_the_same_clips_over_borders(digits: Path, tmp_path: Path) -> None:
    """Drawn in permutations that go on from epoch to epoch: 70 draws of 60 clips."""
    recipe = recipe_of(1, draws=70)
    for attempt, (size, until) in enumerate([(4, 2), (2, 7), (1, 13), (4, None)]):
        answers = run(size, consume, tmp_path, digits, recipe, attempt, None, until)
        assert {answer["status"] for answer in answers} == {"finished" if until is None else "preempted"}
    assert {step: Counter(clips) for step, clips in consumed(tmp_path).items()} == planned(digits, recipe)
