"""What a run consumes is what was planned, whoever is killed and however many ranks go on: on real shards."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from consumers import consume, consumed, flip_audio, make_shards
from ranks import Ranks, run
from toy import toy_recipe

from gamut.plan import plan_epoch
from gamut.recipe import schema
from gamut.recipe.policy import training_policy
from gamut.shards import Index

EPOCHS = 3
BAD = (5, 17, 38)  # rows whose audio has a flipped bit


def recipe_of(workers: int) -> schema.Recipe:
    recipe = toy_recipe(
        epochs=EPOCHS,
        step=schema.Step(packs=4, clips=3),
        views=schema.Views(count=2, frames=48),
        checkpoint=schema.Checkpoint(every_epochs=0.4, every_minutes=1e9, keep=3),
    )
    return replace(recipe, loader=schema.Loader(workers=workers, prefetch=1, max_holes=0.2))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips, of which three are damaged inside."""
    folder = make_shards(tmp_path_factory.mktemp("consumed"))
    index = Index.open(folder)
    for row in BAD:
        flip_audio(index, row)
    return folder


def assert_is_plan(folder: Path, shards: Path, recipe: schema.Recipe) -> None:
    """Every step has the planned clips but the damaged ones, and those are in holes.jsonl, each once."""
    index, found = Index.open(shards), consumed(folder)
    holes = [json.loads(line) for line in (folder / "holes.jsonl").read_text().splitlines()]
    listed = Counter((hole["step"], hole["row"]) for hole in holes)
    step, expected = 0, Counter()
    for number in range(EPOCHS):
        epoch = plan_epoch(index.table(), recipe.seed, number, training_policy(recipe))
        assert sorted(epoch.row.tolist()) == list(range(len(index)))
        for in_epoch in range(epoch.steps):
            first, last = epoch.pack_offset[in_epoch * 4], epoch.pack_offset[in_epoch * 4 + 4]
            planned = zip(epoch.row[first:last], epoch.clip_id[first:last], epoch.draw[first:last])
            clips = [(number, int(clip), int(draw)) for row, clip, draw in planned if row not in BAD]
            assert found.pop(step) == sorted(clips), (number, in_epoch)
            step += 1
            expected.update((step, int(row)) for row in epoch.row[first:last] if row in BAD)
    assert not found
    assert listed == expected
    assert all(hole["reason"] == "checksum" and hole["key"] == index.key(hole["row"]) for hole in holes)


def survive(folder: Path, shards: Path, recipe: schema.Recipe, size: int, deaths: list[tuple[int, int, str]]) -> int:
    """Train until it is finished, dying as told at each start; how many starts it took."""
    for attempt in range(len(deaths) + 1):
        die = deaths[attempt] if attempt < len(deaths) else None
        answers = Ranks(size, consume, folder, shards, recipe, attempt, die).wait()
        if die is None:
            assert all(isinstance(answer, dict) and answer["status"] == "finished" for answer in answers), answers
        else:
            _, rank, how = die
            assert not any(isinstance(answer, dict) for answer in answers), "it was to die"
            if how == "worker":
                assert "worker of process" in str(answers[rank])
                assert " died " in str(answers[rank])
            else:
                assert answers[rank] is None
    return len(deaths) + 1


@pytest.mark.parametrize(
    ("workers", "size", "deaths"),
    [
        (1, 2, [(5, 1, "applied"), (9, 0, "worker")]),
        pytest.param(4, 1, [(3, 0, "prepare")], marks=pytest.mark.long),
    ],
)
def test_none_lost_none_repeated(shards: Path, tmp_path: Path, workers: int, size: int, deaths: list) -> None:
    recipe = recipe_of(workers)
    survive(tmp_path, shards, recipe, size, deaths)
    assert_is_plan(tmp_path, shards, recipe)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_none_lost_none_repeated_at_any_split(shards: Path, tmp_path: Path, workers: int, size: int) -> None:
    chance = random.Random(f"{workers} {size}")
    # Steps in ascending order: an attempt goes on from a checkpoint, and must not be past its death already.
    steps = sorted(chance.sample(range(1, 11), 4))
    deaths = []
    for step in steps:
        # A worker that has read the rest of its epoch is missed by nobody: its run rightly goes on. One worker is one
        # step ahead, so it is surely missed in the first half of the epoch's four steps.
        missed = workers == 1 and step % 4 <= 1
        deaths.append((step, chance.randrange(size), chance.choice(["prepare", "applied"] + ["worker"] * missed)))
    recipe = recipe_of(workers)
    survive(tmp_path, shards, recipe, size, deaths)
    assert_is_plan(tmp_path, shards, recipe)


def test_a_world_that_shrinks_and_grows_takes_the_same_clips_in_every_step(shards: Path, tmp_path: Path) -> None:
    """4 ranks, then 2, then 1, then 4: the clips of a global step, and the list of holes, are those of one rank."""
    recipe = recipe_of(0)
    for attempt, (size, until) in enumerate([(4, 3), (2, 6), (1, 9), (4, None)]):
        answers = run(size, consume, tmp_path / "changing", shards, recipe, attempt, None, until)
        assert {answer["status"] for answer in answers} == {"finished" if until is None else "preempted"}
    assert_is_plan(tmp_path / "changing", shards, recipe)
    run(1, consume, tmp_path / "one", shards, recipe, 0)
    assert consumed(tmp_path / "changing") == consumed(tmp_path / "one")
    assert (tmp_path / "changing" / "holes.jsonl").read_bytes() == (tmp_path / "one" / "holes.jsonl").read_bytes()


def test_damage_during_a_run_is_left_out_and_past_the_limit_listed(shards: Path, tmp_path: Path) -> None:
    """The same on both ranks; after the limit is raised the run goes on, and nothing is listed twice."""
    damaged = Path(shutil.copytree(shards, tmp_path / "set"))
    strict = recipe_of(1)
    strict = replace(strict, loader=replace(strict.loader, max_holes=0.05))
    said = Ranks(2, consume, tmp_path / "run", damaged, strict, 0).wait()
    assert said[0] == said[1]
    index = Index.open(damaged)
    for row in BAD:
        assert f"{index.key(row)} (checksum)" in said[0]
    assert "3 of 40 clips of this epoch cannot be used" in said[0]
    assert "loader.max_holes=0.05; 3 checksum" in said[0]
    assert str(tmp_path / "run" / "holes.jsonl") in said[0]
    answers = run(2, consume, tmp_path / "run", damaged, recipe_of(1), 1)
    assert answers[0]["state"].holes == 9
    assert answers[0]["state"].hole_reasons == {"checksum": 9}
    _, last = answers[0]["lines"][-1]
    assert (last["holes"], last["holes/checksum"]) == (9, 9)
    assert [values["padded_short"] for _, values in answers[0]["lines"] if "padded_short" in values] == [0] * EPOCHS
    assert_is_plan(tmp_path / "run", damaged, strict)
