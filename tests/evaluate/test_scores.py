"""Every number of a classifier against scikit-learn or its published definition, and what it leaves out."""

from __future__ import annotations

import csv
import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import norm
from sklearn import metrics as sk

from gamut.evaluate import METRICS, Metric
from gamut.evaluate.bootstrap import ends, paired_bootstrap, resampled
from gamut.evaluate.decisions import calibration, choose_thresholds, decided, precision_recall, reliability
from gamut.evaluate.metrics import top_k_accuracy
from gamut.evaluate.ranking import label_precision, lwlrap, precision_and_area
from gamut.evaluate.scores import Scores, numbers_of
from tests.close import assert_close


def problem(clips: int = 150, classes: int = 9, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random((clips, classes)) < 0.2).astype(np.float32)
    logits = rng.normal(size=(clips, classes)).astype(np.float32) + target
    return target, np.round(logits * 2) / 2 if ties else logits


def scored(target: np.ndarray, logits: np.ndarray) -> Scores:
    return Scores(np.arange(len(target)), target, logits)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), clips=st.integers(2, 60), ties=st.booleans())
def test_precision_and_area_equal_scikit_learn_of_clips_that_are_repeated(seed: int, clips: int, ties: bool) -> None:
    target, scores = problem(clips, 4, seed, ties)
    weights = np.random.default_rng(seed).integers(0, 3, (clips, 5))
    precision, area = precision_and_area(target, scores, weights)
    for draw, counts in enumerate(weights.T):
        rows = np.repeat(np.arange(clips), counts)
        for column in range(4):
            there, given = target[rows, column], scores[rows, column]
            expected = sk.average_precision_score(there, given) if there.any() else math.nan
            assert precision[column, draw] == pytest.approx(expected, rel=1e-12, nan_ok=True)
            mixed = there.any() and not there.all()
            expected = sk.roc_auc_score(there, given) if mixed else math.nan
            assert area[column, draw] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    once = precision_and_area(target, scores)
    assert_close(np.stack(once), np.stack(precision_and_area(target, scores, np.ones((clips, 2))))[..., 0])


def dcase(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lwlrap of each class, weight of each class): DCASE 2019, task 2, as its organisers compute it."""
    precisions = np.zeros(truth.shape)
    for sample in range(len(truth)):
        ranked = np.argsort(scores[sample])[::-1]
        rank = np.empty(len(ranked), int)
        rank[ranked] = np.arange(len(ranked))
        hits = np.cumsum(truth[sample][ranked] > 0)
        for label in np.flatnonzero(truth[sample] > 0):
            precisions[sample, label] = hits[rank[label]] / (1.0 + rank[label])
    labels = np.sum(truth > 0, axis=0)
    return np.sum(precisions, axis=0) / np.maximum(1, labels), labels / labels.sum()


def test_lwlrap_equals_the_published_scorer_and_scikit_learn() -> None:
    target, scores = problem()
    target[:3] = 0  # clips without a label
    by_class, weight = dcase(target, scores)
    assert lwlrap(target, scores) == pytest.approx((by_class * weight).sum(), rel=1e-12)
    assert_close(METRICS["lwlrap"].by_class(target, scores), by_class, 1e-12)  # type: ignore[misc]
    some = target.any(axis=1)
    for each in (scores, np.round(scores)):
        ranking = sk.label_ranking_average_precision_score
        exact = each[some].astype(np.float64)  # scipy 1.18 ranks float32 in float32
        expected = ranking(target[some], exact, sample_weight=target[some].sum(axis=1))
        assert lwlrap(target, each) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(lwlrap(np.zeros((2, 3)), np.zeros((2, 3))))


def test_blocks_of_labels_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    target, scores = problem()
    whole = label_precision(target, scores)
    monkeypatch.setattr("gamut.evaluate.ranking.PAIRS", 20)
    for one, other in zip(whole, label_precision(target, scores)):
        np.testing.assert_array_equal(one, other)


def test_top_k_equals_scikit_learn_and_the_first_of_equal_scores_counts() -> None:
    _, scores = problem()
    label = np.random.default_rng(3).integers(0, 9, len(scores))
    for k in (1, 3, 5):
        expected = sk.top_k_accuracy_score(label, scores, k=k, labels=range(9))
        assert top_k_accuracy(label, scores, k) == pytest.approx(expected)
    assert top_k_accuracy(np.array([0, 2]), np.zeros((2, 3)), 2) == 0.5
    assert math.isnan(top_k_accuracy(np.zeros(0, int), np.zeros((0, 3)), 2))


def test_precision_recall_and_f1_equal_scikit_learn() -> None:
    target, logits = problem()
    target[:, 2] = 0
    logits[:, 2] = logits[:, 5] = -9  # neither there nor taken; there and never taken
    limits = np.linspace(0.2, 0.8, 9)
    taken = decided(target, logits, False, limits)
    np.testing.assert_array_equal(taken, expit(logits.astype(np.float64)) >= limits)
    expected = sk.precision_recall_fscore_support(target, taken, average=None, zero_division=np.nan)[:3]
    for ours, theirs in zip(precision_recall(target, taken), expected):
        assert_close(np.nan_to_num(ours, nan=-1), np.nan_to_num(theirs, nan=-1), 1e-12)
    one = decided(target, logits, True, limits)
    np.testing.assert_array_equal(one.argmax(1), logits.argmax(1))
    assert (one.sum(axis=1) == 1).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), clips=st.integers(1, 20), ties=st.booleans())
def test_a_chosen_threshold_gives_the_best_f1_that_there_is(seed: int, clips: int, ties: bool) -> None:
    target, logits = problem(clips, 3, seed, ties)
    chosen = choose_thresholds(target, logits)
    f1 = precision_recall(target, decided(target, logits, False, chosen))[2]
    probability = expit(logits.astype(np.float64))
    for column in range(3):
        if not target[:, column].any():
            assert math.isnan(chosen[column])
            continue
        there = target[:, column]
        every = [sk.f1_score(there, probability[:, column] >= limit) for limit in probability[:, column]]
        assert f1[column] == pytest.approx(max(every), rel=1e-12)
        assert np.abs(probability[:, column] - chosen[column]).min() > 0  # no clip lies on it, to be rounded away
    assert 0 < np.nanmin(chosen, initial=0.5) <= np.nanmax(chosen, initial=0.5) < 1


def test_without_a_threshold_even_odds_decide() -> None:
    target, logits = problem()
    even = logits >= 0
    np.testing.assert_array_equal(decided(target, logits, False, None), even)
    np.testing.assert_array_equal(decided(target, logits, False, np.full(9, np.nan)), even)


def expected_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, equations 2 and 3, in their own reference's words."""
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
    return total


def test_calibration_error_is_the_published_one() -> None:
    target, logits = problem(400)
    one_label = np.eye(9, dtype=np.float32)[target.argmax(1)]
    probability = softmax(logits.astype(np.float64), axis=1)
    right = probability.argmax(1) == one_label.argmax(1)
    assert calibration(one_label, logits, True).error == pytest.approx(expected_error(probability.max(1), right))
    sigmoid = expit(logits.astype(np.float64))
    found = calibration(target, logits, False)
    assert found.error == pytest.approx(expected_error(sigmoid.ravel(), target.ravel()))
    assert found.clips.sum() == target.size
    assert reliability(np.array([True, False]), np.array([1.0, 0.0])).error == 0.0
    assert math.isnan(reliability(np.zeros(0, bool), np.zeros(0)).error)


def test_what_numbers_leave_out_is_counted() -> None:
    target, logits = problem()
    target[:, 2], target[:, 4] = 0, 1
    target[5:8] = 0
    target[:, 4] = 1
    logits[:, 6] = -9
    found = numbers_of(scored(target, logits), exclusive=False)
    assert found.left_out == {
        "classes_without_positives": 1,
        "classes_without_negatives": 1,
        "classes_never_taken": 1,
        "clips_without_labels": 0,
    }
    with_clips, both = [0, 1, 3, 4, 5, 6, 7, 8], [0, 1, 3, 5, 6, 7, 8]
    assert found.means["mAP"] == pytest.approx(sk.average_precision_score(target[:, with_clips], logits[:, with_clips]))
    assert found.means["AUC"] == pytest.approx(sk.roc_auc_score(target[:, both], logits[:, both]))
    assert found.means["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(found.means["AUC"]))
    f1 = sk.f1_score(target[:, with_clips], logits[:, with_clips] >= 0, average="macro", zero_division=0.0)
    assert found.means["F1"] == pytest.approx(f1)
    assert "top-5" not in found.means
    assert np.isnan(found.by_class.AUC[[2, 4]]).all()


def test_of_classes_that_exclude_each_other_the_highest_is_the_decision() -> None:
    target, logits = problem()
    target = np.eye(9, dtype=np.float32)[target.argmax(1)]
    target[3] = 0
    found = numbers_of(scored(target, logits), exclusive=True)
    some = target.any(axis=1)
    assert found.left_out["clips_without_labels"] == 1
    assert found.means["accuracy"] == sk.accuracy_score(target[some].argmax(1), logits[some].argmax(1))
    top = sk.top_k_accuracy_score(target[some].argmax(1), logits[some], k=5, labels=range(9))
    assert found.means["top-5"] == pytest.approx(top)
    assert np.isnan(found.by_class.threshold).all()


def test_the_table_of_classes_is_read_by_any_tool(tmp_path: Path) -> None:
    target, logits = problem(classes=3)
    target[:, 1] = 0
    found = numbers_of(scored(target, logits), exclusive=False, thresholds=[0.5, 0.5, 0.25]).by_class
    rows = list(csv.DictReader(io.StringIO(found.csv(["a", 'b, "c"', "d"]))))
    assert [row["label"] for row in rows] == ["a", 'b, "c"', "d"]
    assert [int(row["clips"]) for row in rows] == target.sum(axis=0).tolist()
    assert (rows[1]["AP"], rows[1]["recall"], rows[2]["threshold"]) == ("", "", "0.25")
    assert float(rows[2]["F1"]) == found.F1[2]


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    target, logits = problem(4, 3)
    scored(target, logits).save(tmp_path / "scores.npz", ["a", "b", "c", "d"], np.arange(4, dtype=np.uint64))
    back = Scores.load(tmp_path / "scores.npz")
    np.testing.assert_array_equal(back.logits, logits)
    assert (back.key.tolist(), back.clip.tolist()) == (["a", "b", "c", "d"], [0, 1, 2, 3])
    np.savez(tmp_path / "old.npz", key=back.key, row=back.row, target=target, logits=logits)  # an earlier version's
    assert len(Scores.load(tmp_path / "old.npz").clip) == 0


@pytest.mark.filterwarnings("ignore:1 of 5 classes have no positive")
@pytest.mark.parametrize("name", list(METRICS))
def test_a_resampled_score_is_that_of_the_clips_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = METRICS[name]
    target, logits = problem(40, 5)
    if metric.one_label:
        target = np.eye(5, dtype=np.float32)[target.argmax(1)]
    draws = resampled(metric, target, logits, 20, seed=4)
    assert draws is not None
    rows = np.arange(40)  # what is drawn shows in the mean of each clip's number
    alone = [Metric("row", lambda *_: 0.0, by_clip=lambda *_, row=row: (rows == row).astype(float)) for row in rows]
    counts = np.stack([resampled(one, target, logits, 20, seed=4) for one in alone]) * 40  # type: ignore[arg-type]
    assert_close(counts.sum(axis=0), np.full(20, 40.0), 1e-12)
    for draw in range(20):
        again = np.repeat(rows, np.rint(counts[:, draw]).astype(int))
        assert draws[draw] == pytest.approx(metric.score(target[again], logits[again]), rel=1e-12)
    monkeypatch.setattr("gamut.evaluate.bootstrap.COUNTS", 130)
    assert_close(resampled(metric, target, logits, 20, seed=4), draws, 1e-12)


def test_two_models_are_compared_draw_by_draw() -> None:
    target, logits = problem(80, 5)
    target = np.eye(5, dtype=np.float32)[target.argmax(1)]
    metric, worse = METRICS["accuracy"], problem(80, 5, seed=9)[1]
    draws = [resampled(metric, target, scores, 500, seed=2) for scores in (logits, worse)]
    hits = [metric.by_clip(target, scores) for scores in (logits, worse)]  # type: ignore[misc]
    _, low, high = paired_bootstrap(*hits, resamples=500, seed=2)
    assert_close(ends(draws[0] - draws[1]), (low, high), 1e-12)  # type: ignore[operator]


def test_an_interval_is_only_of_what_can_be_resampled() -> None:
    target, logits = problem(10, 3)
    assert resampled(Metric("loss", lambda *_: 0.0), target, logits) is None
    low, high = ends(np.array([0.0, math.nan, 1.0]))
    assert (low, high) == pytest.approx((0.025, 0.975))
    assert np.isnan(ends(np.array([math.nan]))).all()
    assert np.isnan(resampled(METRICS["mAP"], np.zeros((3, 2)), np.zeros((3, 2)), 4)).all()  # type: ignore[arg-type]
