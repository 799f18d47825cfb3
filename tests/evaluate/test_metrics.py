"""Metrics against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn import metrics as sk

from gamut.evaluate import METRICS, Metric, bootstrap, metrics
from tests.close import assert_close


def _problem(clips: int = 200, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random((clips, classes)) < 0.3).astype(np.float32)
    return target, rng.normal(size=(clips, classes)).astype(np.float32) + target


def test_accuracy_and_confusion_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    target, scores = rng.integers(0, 5, 300), rng.normal(size=(300, 5))
    predicted = scores.argmax(1)
    assert metrics.accuracy(target, scores) == sk.accuracy_score(target, predicted)
    np.testing.assert_array_equal(metrics.correct(target, scores), predicted == target)
    np.testing.assert_array_equal(
        metrics.confusion(target, predicted, 6), sk.confusion_matrix(target, predicted, labels=range(6))
    )
    assert math.isnan(metrics.accuracy(np.zeros(0, int), np.zeros((0, 5))))


def test_macro_means_equal_scikit_learn() -> None:
    target, scores = _problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = metrics.tagging(target, scores)
    assert ours.mean_average_precision == pytest.approx(sk.average_precision_score(target, scores, average="macro"))
    assert ours.mean_average_precision == metrics.mean_average_precision(target, scores)
    assert ours.auc == pytest.approx(sk.roc_auc_score(target, scores, average="macro"))
    assert ours.d_prime == pytest.approx(math.sqrt(2) * norm.ppf(ours.auc))
    assert (ours.classes, ours.without_positives, ours.without_negatives) == (7, 0, 0)


def test_hand_counted_average_precision() -> None:
    # ranks of the positives: 1 and 3 -> (1/1 + 2/3) / 2 ; AUC: 3 of 4 pairs in order
    ours = metrics.tagging(np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.8], [0.7], [0.1]]))
    assert ours.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert ours.auc == pytest.approx(3 / 4)


def test_classes_that_cannot_be_scored_are_left_out_and_counted() -> None:
    target, scores = _problem()
    target[:, 2] = 0
    target[:, 4] = 1
    with pytest.warns(UserWarning, match="1 of 7 classes have no positive"):
        ours = metrics.tagging(target, scores)
    assert (ours.classes, ours.without_positives, ours.without_negatives) == (6, 1, 1)
    with_positives, both = [0, 1, 3, 4, 5, 6], [0, 1, 3, 5, 6]
    assert ours.mean_average_precision == pytest.approx(
        sk.average_precision_score(target[:, with_positives], scores[:, with_positives], average="macro")
    )
    assert ours.auc == pytest.approx(sk.roc_auc_score(target[:, both], scores[:, both], average="macro"))
    assert np.isnan(ours.average_precision[2])
    with pytest.warns(UserWarning, match="3 of 3 classes"):
        assert math.isnan(metrics.mean_average_precision(np.zeros((4, 3)), np.zeros((4, 3))))


@given(auc=st.floats(0.01, 0.99))
def test_d_prime_is_the_distance_of_two_normal_scores(auc: float) -> None:
    # scores N(0, 1) and N(d', 1): a positive beats a negative with probability Phi(d' / sqrt(2))
    assert norm.cdf(metrics.d_prime(auc) / math.sqrt(2)) == pytest.approx(auc)


def test_logits_and_probabilities_score_alike() -> None:
    target, scores = _problem()
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    assert metrics.mean_average_precision(target, scores) == metrics.mean_average_precision(target, probability)


def test_scores_that_are_not_numbers_are_refused() -> None:
    target, scores = _problem(20, 3)
    scores[5, 1] = np.nan
    with pytest.raises(ValueError, match="1 clips are not finite, the first in row 5"):
        metrics.mean_average_precision(target, scores)
    with pytest.raises(ValueError, match="not finite"):
        metrics.accuracy(target.argmax(1), scores)
    with pytest.raises(ValueError, match="do not fit"):
        metrics.accuracy(np.zeros(3, int), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="outside"):
        metrics.confusion(np.array([3]), np.array([0]), 3)


def test_bootstrap_interval_of_one_sided_differences_is_binomial() -> None:
    # b always wrong, a right on 30 of 100: a resampled difference is Binomial(100, 0.3) / 100
    a, b = np.arange(100) < 30, np.zeros(100, bool)
    mean, low, high = bootstrap.paired_bootstrap(a, b, 40_000, seed=3)
    assert mean == pytest.approx(0.3)
    expected = binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert np.abs(np.array([low, high]) - expected).max() <= 0.0101


@settings(max_examples=25)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_bootstrap_properties(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random(n), rng.random(n)
    mean, low, high = bootstrap.paired_bootstrap(a, b, 500, seed)
    assert mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (a - b).min() - 1e-12 <= low <= high <= (a - b).max() + 1e-12
    assert bootstrap.paired_bootstrap(a, b, 500, seed) == (mean, low, high)
    back = bootstrap.paired_bootstrap(b, a, 500, seed)
    assert_close(back, (-mean, -high, -low), 1e-12)
    shifted = bootstrap.paired_bootstrap(a + 1, b, 500, seed)
    assert_close(shifted, np.array([mean, low, high]) + 1, 1e-12)


def test_bootstrap_is_paired_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a = rng.random(50) < 0.5
    assert bootstrap.paired_bootstrap(a, a, 200) == (0.0, 0.0, 0.0)  # the same clips of both models are drawn
    b = rng.random(50) < 0.4
    whole = bootstrap.paired_bootstrap(a, b, 300, seed=1)
    monkeypatch.setattr(bootstrap, "BLOCK", 70)
    assert bootstrap.paired_bootstrap(a, b, 300, seed=1) == whole
    with pytest.raises(ValueError, match="same clips"):
        bootstrap.paired_bootstrap(a, b[:-1])


def test_a_metric_knows_which_score_is_better_and_how_it_is_shown() -> None:
    accuracy, loss = METRICS["accuracy"], Metric("loss", lambda *_: 0.0, higher_is_better=False, percent=False)
    assert accuracy.better(0.5, 0.4)
    assert not accuracy.better(0.5, 0.5)
    assert loss.better(0.4, 0.5)
    for metric in (accuracy, loss):
        assert metric.better(math.nan, None)  # the first, whatever it is
        assert metric.better(0.1, math.nan)
        assert not metric.better(math.nan, 0.1)
        assert not metric.better(math.nan, math.nan)
    assert (accuracy.show(0.853), loss.show(0.853)) == ("85.3%", "0.853")
    assert (accuracy.show_difference(-0.012), loss.show_difference(0.012)) == ("-1.2 points", "+0.012")
    assert (accuracy.title, loss.title) == ("accuracy, %", "loss")


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_is_what_its_parts_say(name: str) -> None:
    target, logits = _problem()
    metric = METRICS[name]
    if metric.one_label:
        target = np.eye(target.shape[1], dtype=np.float32)[target.argmax(1)]
    score = metric.score(target, logits)
    assert metric.values(target, logits)[name] == score
    assert metric.better(metric.score(target, target + 0.0), score)
    if metric.by_clip:
        assert metric.by_clip(target, logits).mean() == pytest.approx(score, rel=1e-12)
    if metric.by_class and not metric.by_clip:
        by_label = target.sum(axis=0) if name == "lwlrap" else None  # a mean over labels, not over classes
        assert np.average(metric.by_class(target, logits), weights=by_label) == pytest.approx(score, rel=1e-12)
