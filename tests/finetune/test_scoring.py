"""What a round leaves of its scores: thresholds that the test's clips have no part in, and every number in a file."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import f1_score
from torch import nn

from finetune import compare, scoring
from finetune.rounds import Round
from finetune.scoring import Scoring
from gamut.evaluate import METRICS
from gamut.evaluate.decisions import choose_thresholds
from gamut.evaluate.events import Heard, Timed, choose_frame_thresholds
from gamut.evaluate.scores import Scores
from gamut.models.find import metadata_of
from gamut.recipe.load import load_recipe
from gamut.track.run import BEST, CLASSES, RESULT, SCORES
from gamut.train.objective import Moment
from gamut.train.world import World
from tests.close import assert_close

CLASSES_OF = ("bell", "dog", "rain", "rare")
ALONE = World(0, 1, 0, 1, torch.device("cpu"), 1)


def clips(seed: int, exclusive: bool = False) -> Scores:
    """40 of three of four classes; of the last one only where the seed is even."""
    rng = np.random.default_rng(seed)
    target = (rng.random((40, 4)) < 0.3).astype(np.float32)
    target[:, 3] *= seed % 2 == 0
    if exclusive:
        target = np.eye(4, dtype=np.float32)[target.argmax(1)]
    logits = (rng.normal(size=(40, 4)) + 2 * target - 3).astype(np.float32)
    return Scores(np.arange(40), target, logits)


def scored(folder: Path, monkeypatch: pytest.MonkeyPatch, loss: str, validation: Scores | None, test: Scores) -> dict:
    """result.json of a round that was scored once, after its last epoch, without any network."""
    line = ["data=/unused", "epochs=1", f"finetune.loss={loss}", "run.name=x"]
    recipe, index = (
        load_recipe("finetune", "esc10", line),
        SimpleNamespace(
            key=lambda row: f"clip-{row}", clip_id=np.arange(40, dtype=np.uint64), labels=CLASSES_OF, fingerprint="f"
        ),
    )
    objective: Any = SimpleNamespace(
        with_average=nullcontext, model=nn.Linear(2, 2), described=lambda: {"labels": list(CLASSES_OF)}
    )
    run: Any = SimpleNamespace(folder=folder, recipe=recipe, tracker=SimpleNamespace(figure=lambda *_: None))
    monkeypatch.setattr(scoring, "evaluate", lambda objective, index, clips, *_, **__: clips)
    each = Round((1,), (3,), 0, (2,) if validation else ())
    scoring_of: Any = Scoring
    one = scoring_of(objective, recipe, each, index, test, validation, run, ALONE)
    one(0, Moment(epoch=0, step=3, step_in_epoch=3, fraction=1.0))
    one.finish(3, 0, {})
    return json.loads((folder / RESULT).read_text())


@pytest.mark.filterwarnings("ignore:1 of 4 classes have no positive")
def test_thresholds_are_chosen_by_validation_clips_alone_and_judge_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation, test = clips(1), clips(2)
    result = scored(tmp_path, monkeypatch, "bce", validation, test)
    about = metadata_of(tmp_path / BEST)
    chosen = choose_thresholds(validation.target, validation.logits)
    assert about["thresholds"] == [*chosen[:3].tolist(), 0.5]
    assert about["thresholds_not_chosen"] == [3]  # no validation clip has the last class
    assert about["chosen_on"] == "validation folds 2"
    taken = expit(test.logits.astype(np.float64)) >= about["thresholds"]
    expected = f1_score(test.target, taken, average=None, zero_division=0.0)
    with (tmp_path / CLASSES).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(CLASSES_OF)
    assert_close([float(row["F1"]) for row in rows], expected, 1e-12)
    assert [float(row["threshold"]) for row in rows] == about["thresholds"]
    assert result["more_metrics"]["F1"] == pytest.approx(expected.mean())
    low, high = result["interval"]
    assert low < result["score"] < high
    assert result["left_out"]["classes_without_positives"] == 0
    assert Scores.load(tmp_path / SCORES).key[1] == "clip-1"


def with_frames(scores: Scores, seed: int) -> Scores:
    """Each clip is of 20 frames and has one event of class 0, whose frames are loud, but less than a half."""
    rng = np.random.default_rng(seed)
    heard = []
    for _ in range(40):
        begin, size = int(rng.integers(2, 10)), int(rng.integers(3, 8))
        probability = rng.uniform(0.0, 0.2, (20, 4)).astype(np.float32)
        probability[begin : begin + size, 0] = rng.uniform(0.25, 0.45, size)
        heard.append(Heard(probability, 0.16 * np.arange(21), np.array([[0.16 * begin, 0.16 * (begin + size), 0.0]])))
    return replace(scores, timed=Timed.of(heard, CLASSES_OF))


@pytest.mark.filterwarnings("ignore:1 of 4 classes have no positive")
def test_thresholds_of_frames_are_chosen_by_validation_clips_alone_and_judge_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation, test = (with_frames(clips(seed), seed) for seed in (1, 2))
    result = scored(tmp_path, monkeypatch, "bce", validation, test)
    about = metadata_of(tmp_path / BEST)
    assert validation.timed is not None
    (first, *_) = choose_frame_thresholds(validation.timed.clips(), 4)
    assert about["frame_thresholds"] == [first, 0.5, 0.5, 0.5]
    assert about["frame_thresholds_not_chosen"] == [1, 2, 3]  # no validation clip has an event of them
    assert 0.2 < first < 0.25
    assert result["metrics"]["event_f1"] == 0.0  # at a half
    assert result["more_metrics"]["event_f1_chosen"] == pytest.approx(1.0)
    (tmp_path / "without").mkdir()
    without = scored(tmp_path / "without", monkeypatch, "bce", None, test)
    assert "event_f1_chosen" not in without["more_metrics"]
    assert "frame_thresholds" not in metadata_of(tmp_path / "without" / BEST)


@pytest.mark.parametrize(("loss", "validated"), [("bce", False), ("ce", True)])
def test_no_threshold_is_chosen_by_the_test_nor_where_the_highest_class_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, validated: bool
) -> None:
    exclusive = loss == "ce"
    result = scored(tmp_path, monkeypatch, loss, clips(1, exclusive) if validated else None, clips(2, exclusive))
    assert not {"thresholds", "thresholds_not_chosen"} & metadata_of(tmp_path / BEST).keys()
    assert ("accuracy" in result["metrics"] | result["more_metrics"]) == exclusive
    with (tmp_path / CLASSES).open(newline="") as file:
        assert {row["threshold"] for row in csv.DictReader(file)} == {""}


def test_two_arms_differ_by_an_interval_whatever_the_metric(tmp_path: Path) -> None:
    metric, arms = METRICS["mAP"], []
    for arm, gain in (("good", 2.0), ("bad", 0.0)):
        rounds = []
        for seed in range(2):
            found, path = clips(4), tmp_path / f"{arm}-{seed}.npz"
            noise = np.random.default_rng(seed).normal(size=found.target.shape).astype(np.float32)
            Scores(found.row, found.target, gain * found.target + noise).save(path, ["k"] * 40, found.row)
            rounds.append({"scores": str(path)})
        means = [metric.score(one.target, one.logits) for one in (Scores.load(Path(r["scores"])) for r in rounds)]
        arms.append({"mean": np.mean(means), "rounds": rounds})
    between = compare.difference(*arms, metric)
    assert between.mean == pytest.approx(arms[0]["mean"] - arms[1]["mean"])
    assert 0 < between.low < between.mean < between.high < 1
    assert between.clips == 40  # by their ids: keys repeat
    same = compare.difference(arms[0], arms[0], metric)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)  # the same clips of both are drawn
