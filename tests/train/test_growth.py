"""A run that takes what is added to its shard set at an epoch's border, on real recordings."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from consumers import consume, consumed
from ranks import Ranks, run
from test_holes import ALONE
from test_resume import assert_same_end
from toy import toy_recipe

from gamut.data.ahead import Ahead
from gamut.errors import RecipeError, RunError, ShardError
from gamut.plan import Catalogue, Clips
from gamut.recipe import schema
from gamut.recipe.check import check
from gamut.recipe.policy import training_policy
from gamut.remote import Remote
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.shards.add import add
from gamut.shards.generations import read_generations
from gamut.train.growth import TAKEN, Growth
from gamut.train.state import State, moment
from tests.servers import http_server

EPOCHS, CLIPS = 4, (30, 12, 6)
MORE = {3: 1, 8: 2}  # step after which a set is added -> which: in epoch 0 of 5 steps, and in epoch 1 of 7


@pytest.fixture(scope="module")
def digits(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken digits in sets of one name: set0 to set2 of 30, 12 and 6 clips."""
    place = tmp_path_factory.mktemp("grown")
    files = sorted((shared_data / "fsdd").rglob("*.wav"))
    left = iter(files[:: len(files) // sum(CLIPS)])
    for number, clips in enumerate(CLIPS):
        for file in [next(left) for _ in range(clips)]:
            folder = place / f"source{number}" / "digit"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file.name)
        line = ["convert", "folder", str(place / f"source{number}"), str(place / f"set{number}"), "--folds", "0"]
        assert shards([*line, "--name", "digits", "--clips-per-shard", "5", "--workers", "1"]) == 0
    return place


def recipe_of() -> schema.Recipe:
    recipe = toy_recipe(
        epochs=EPOCHS,
        step=schema.Step(packs=2, clips=3),
        views=schema.Views(count=2, frames=48),
        checkpoint=schema.Checkpoint(every_epochs=0.9, every_minutes=1e9, keep=3),
        plan=schema.PlanOptions(block=12, grow=True),
    )
    return replace(recipe, loader=schema.Loader(workers=2, prefetch=1))


def grown(digits: Path, folder: Path) -> tuple[Path, tuple[str, dict[int, Path]]]:
    """(a set that is to grow, what `consume` is told of it)."""
    shutil.copytree(digits / "set0", folder)
    return folder, (Index.open(folder).fingerprint, {step: digits / f"set{number}" for step, number in MORE.items()})


def test_killed_after_it_grew_it_ends_as_if_it_never_was(digits: Path, tmp_path: Path) -> None:
    """Also where the set has grown again since the border that it goes back over."""
    size, recipe = 2, recipe_of()
    place, told = grown(digits, tmp_path / "set")
    expected = run(size, consume, tmp_path / "reference", place, recipe, 0, None, None, *told)
    fingerprints = [one.fingerprint for one in read_generations(place)[1]]
    assert [answer["state"].generation for answer in expected] == [fingerprints[2]] * size
    assert expected[0]["state"].draws == 30 + 42 + 48 + 48
    clips = Counter(clip for step in consumed(tmp_path / "reference").values() for clip in step)
    for epoch, number in enumerate((0, 1, 2, 2)):
        ids = Index.open(place, generation=fingerprints[number]).clip_id.tolist()
        assert Counter(clip for (of, clip, _), _ in clips.items() if of == epoch) == Counter(ids)
    assert set(clips.values()) == {1}

    folder = tmp_path / "run"
    place, told = grown(digits, tmp_path / "again")
    for attempt, (step, rank) in enumerate([(9, 1), (13, 0)]):
        dies = (step, rank % size, "applied")
        assert None in Ranks(size, consume, folder, place, recipe, attempt, dies, None, *told).wait()
    answers = run(size, consume, folder, place, recipe, 2, None, None, *told)
    assert_same_end(folder, answers, tmp_path / "reference", expected, "grown")
    assert consumed(folder) == consumed(tmp_path / "reference")
    taken = json.loads((folder / TAKEN).read_text())["epochs"]
    assert taken == {str(epoch + 1): fingerprints[number] for epoch, number in enumerate((1, 2, 2))}


def test_a_remote_set_grows_as_one_on_the_disk(digits: Path, tmp_path: Path) -> None:
    """What is new of its index is fetched at a border; killed behind one, it goes on."""
    recipe = recipe_of()
    place, told = grown(digits, tmp_path / "here")
    (expected,) = run(1, consume, tmp_path / "near", place, recipe, 0, None, None, *told)
    place, told = grown(digits, tmp_path / "there")
    recipe = replace(recipe, remote=Remote(cache=str(tmp_path / "cache"), tries=2, pause_seconds=0.01, piece_mb=0.05))
    far = tmp_path / "far"
    with http_server(place) as server:
        alike = (place, recipe, 0, (7, 0, "applied"), None, *told, server.url)
        assert Ranks(1, consume, far, *alike).wait() == [None]
        (answer,) = run(1, consume, far, place, recipe, 1, None, None, *told, server.url)
        assert all(range_ for name, range_ in server.requests if name.endswith(".tar"))
    assert_same_end(far, [answer], tmp_path / "near", [expected], "remote")
    assert consumed(far) == consumed(tmp_path / "near")
    taken = json.loads((far / TAKEN).read_text())["epochs"]
    assert taken == json.loads((tmp_path / "near" / TAKEN).read_text())["epochs"]
    assert len({*taken.values()}) == 2


def test_what_cannot_be_used_is_left_out_with_a_warning(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, (began, more) = grown(digits, tmp_path / "set")
    recipe = replace(recipe_of(), data=str(place))

    def plan(index: Index, clips: Clips | Catalogue) -> Ahead:
        return Ahead(tmp_path / "plan", clips, recipe.seed, training_policy(recipe), recipe.epochs)

    growth, present = Growth(recipe, ALONE, tmp_path, Index.table, plan), Index.open(place)
    assert growth.newest(1, present) is None
    assert capsys.readouterr().out == ""
    newest = add(place, [more[3]]).index
    tar = newest.shard_path(len(newest.shards) - 1)
    tar.rename(tmp_path / "away")
    assert growth.newest(2, present) is None
    said = capsys.readouterr().out
    assert f"warning: {place} has grown, and epoch 2 goes on without what is new: {tar} is in the index but" in said
    (tmp_path / "away").rename(tar)
    assert growth.newest(2, present) is None  # as it was decided
    found = growth.newest(3, present)
    assert found is not None
    assert (found.index.fingerprint, len(found.index)) == (newest.fingerprint, 42)
    assert "epoch 3: " in capsys.readouterr().out
    found.plans.close()
    taken = json.loads((tmp_path / TAKEN).read_text())["epochs"]
    assert taken == {"1": began, "2": began, "3": newest.fingerprint}
    with pytest.raises(ShardError, match="no longer what this run went on with: it has no generation"):
        growth.open("0" * 32)
    tar.unlink()
    with pytest.raises(ShardError, match="cannot be found"):  # the epoch had it before
        growth.newest(3, present)
    (tmp_path / TAKEN).write_text("{}")
    with pytest.raises(RunError, match=r"generations\.json is damaged .* Remove it"):
        growth.newest(4, present)


def test_schedules_know_no_jump_at_a_border() -> None:
    class Plan:
        def __init__(self, draws: int) -> None:
            self.draws = draws

        def draws_before(self, step: int) -> int:
            return step * 10

    state = replace(State(epoch_draws=50), epoch=1, step=5).next_epoch(50)
    assert (state.epoch, state.more_draws) == (2, 0)
    assert moment(state, Plan(50), 4).fraction == moment(state, Plan(70), 4).fraction == 0.5
    state = state.next_epoch(70)
    assert state.draws_at(Plan(90), 3) == 50 + 50 + 70 + 30
    assert moment(replace(state, step_in_epoch=9), Plan(90), 4).fraction == 1


def test_a_fine_tuning_does_not_grow() -> None:
    with pytest.raises(RecipeError, match=r"plan\.grow is for pretraining"):
        check(schema.Recipe(stage="finetune", run=schema.Run(name="x"), plan=schema.PlanOptions(grow=True)))
