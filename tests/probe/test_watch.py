"""Probes of a run that goes on: when, what is logged, and that nothing reaches the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gamut.preemption import PREEMPTION, Preempted
from gamut.probe import watch as watching
from gamut.probe.features import Encoder
from gamut.probe.labelled import labelled
from gamut.probe.watch import Watch
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.track.metrics import History
from gamut.track.run import RunFolder
from gamut.track.tracker import Tracker
from gamut.train.objective import Moment
from gamut.train.world import World

from .conftest import encoder

ALONE = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"), threads=1)


@contextmanager
def attempt(recipe: Recipe, index: Index, encode: Encoder) -> Iterator[tuple[Watch, Tracker]]:
    folder = RunFolder.open(recipe)
    clips, _ = labelled(recipe, index)
    with (
        Tracker(folder, recipe) as tracker,
        Watch(recipe, clips, encode, ALONE, folder.path, tracker) as watch,
    ):
        yield watch, tracker


def moment(epoch: int) -> Moment:
    return Moment(epoch, 10 * (epoch + 1), 10, 0.0)


def test_a_run_is_probed_before_during_and_after_it(recipe: Recipe, labelled_set: Index, tmp_path: Path) -> None:
    encode = encoder()
    with attempt(recipe, labelled_set, encode) as (watch, tracker):
        watch.before()
        for epoch in range(4):
            tracker.log(10 * (epoch + 1), {"loss": 1.0})
            values = watch.after_epoch(epoch, moment(epoch))
            assert set(values) == ({"probe/seconds"} if epoch in (1, 3) else set())
            if epoch == 1:  # the teacher moves on while the vectors of before are being scored
                with torch.no_grad():
                    encode.backbone.blocks[0].mlp.fc1.weight.normal_(generator=torch.Generator().manual_seed(0))
        watch.finish()
    history = History.read(tmp_path / "run" / "metrics.jsonl")
    assert history.series("loss")[0] == [10, 20, 30, 40]  # what came late has undone nothing
    kinds = {f"probe/{how}/{kind}" for how in ("knn", "linear") for kind in ("cls", "mean", "both")}
    for name in kinds:
        steps, values = history.series(name)
        assert steps == [0, 20, 40]
        assert all(0.0 <= value <= 1.0 for value in values)
        assert values[0] == values[1]  # the same weights
    assert any(history.series(name)[1][2] != history.series(name)[1][1] for name in kinds)
    for how in ("knn", "linear"):
        assert history.series(f"probe/{how}/logmel")[0] == [0]
    assert history.series("probe/linear/logmel")[1][0] > 1 / 3  # six classes
    assert history.series("probe/clips") == ([0, 20, 40], [60.0] * 3)
    assert set(history.figures["embedding"]) == {0, 40}
    assert not list((tmp_path / "run" / "probe-queue").iterdir())
    with attempt(recipe, labelled_set, encode) as (watch, _):
        watch.before()  # the baselines are known
        assert not (tmp_path / "run" / "probe-queue" / "step-00000000").exists()


@pytest.mark.long
def test_other_clips_or_vectors_have_reference_lines_of_their_own(
    recipe: Recipe, labelled_set: Index, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def before(**options: object) -> tuple[dict[str, float], str]:
        """(the scores at step 0 after an attempt with these options of the probe, what it said)."""
        asked = replace(recipe, probe=replace(recipe.probe, **options))
        with attempt(asked, labelled_set, replace(encoder(), with_rows=asked.probe.rows)) as (watch, _):
            watch.before()
            watch.finish()
        points = History.read(tmp_path / "run" / "metrics.jsonl").points
        return {name: points[name][0][0] for name in points}, capsys.readouterr().out

    first, said = before()
    assert "warning" not in said
    rows, said = before(rows=True)
    assert "warning" not in said
    assert rows.keys() - first.keys() == {"probe/knn/rows", "probe/linear/rows"}
    assert first.items() <= rows.items()
    split = {"train": {"fold": [1]}, "test": {"fold": [2]}}
    fewer, said = before(rows=True, **split)
    assert "warning: the probes are of other clips" in said
    assert fewer["probe/clips"] == 12
    assert fewer["probe/linear/logmel"] != first["probe/linear/logmel"]
    monkeypatch.setattr(watching, "extract", lambda *_, **__: pytest.fail("nothing is to be encoded"))
    assert before(rows=True, **split) == (fewer, "")


def test_a_probe_that_fails_is_counted_and_the_training_goes_on(
    recipe: Recipe, labelled_set: Index, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(watching, "extract", out_of_memory)
    with attempt(recipe, labelled_set, encoder()) as (watch, _):
        watch.before()
        watch.after_epoch(1, moment(1))
        watch.finish()
    assert capsys.readouterr().out.count("came to nothing (rank 0: RuntimeError: out of memory)") == 2
    history = History.read(tmp_path / "run" / "metrics.jsonl")
    assert history.series("probe/failures") == ([0, 20], [1.0, 2.0])
    assert not list((tmp_path / "run").glob("probe-queue/*"))


def test_a_probe_is_left_where_the_process_is_to_end_and_is_no_failure(
    recipe: Recipe, labelled_set: Index, tmp_path: Path, monkeypatch
) -> None:
    recipe = replace(recipe, loader=replace(recipe.loader, packs_per_forward=1))
    encode = encoder()
    whole, seen = encode.backbone.forward, []

    def told(*given: object, **more: object) -> object:
        seen.append(given)
        monkeypatch.setattr(PREEMPTION, "asked", True)
        return whole(*given, **more)

    monkeypatch.setattr(encode.backbone, "forward", told)
    with attempt(recipe, labelled_set, encode) as (watch, _), pytest.raises(Preempted):
        watch.after_epoch(1, moment(1))
    clips = sum(len(where.lengths) for _, where, *_ in seen)
    assert clips < len(labelled_set.samples)  # the rest was passed over
    assert "probe/failures" not in History.read(tmp_path / "run" / "metrics.jsonl").points
    assert not list((tmp_path / "run").glob("probe-queue/*"))


def test_without_a_probe_nothing_happens(recipe: Recipe, labelled_set: Index, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "extract", lambda *_, **__: pytest.fail("nothing is to be encoded"))
    off = replace(recipe, probe=replace(recipe.probe, every_epochs=0.0))
    with attempt(off, labelled_set, encoder()) as (watch, _):
        watch.before()
        assert watch.after_epoch(3, moment(3)) == {}
        watch.finish()
    assert not (tmp_path / "run" / "probe-queue").exists()
