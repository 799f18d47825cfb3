"""Probes against closed forms and a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from gamut.evaluate.metrics import accuracy, mean_average_precision
from gamut.evaluate.probe import exclusive, knn, linear_probe, probe, score
from tests.close import assert_close


def _clusters(
    seed: int = 0, clips: int = 90, classes: int = 3, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features [clips, 8], classes [clips], the same as rows of zeros and a one)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % classes
    centres = np.random.default_rng(99).normal(size=(classes, 8)) * 2
    return centres[labels] + rng.normal(size=(clips, 8)) * spread, labels, np.eye(classes)[labels]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_votes_by_the_exponential_of_cosine_similarity(k: int) -> None:
    (x, y, target), (test_x, _, _) = _clusters(), _clusters(1)
    cosine = (test_x / np.linalg.norm(test_x, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    expected = np.zeros((len(test_x), 3))
    for clip, row in enumerate(cosine):
        for other in np.argsort(-row)[:k]:
            expected[clip, y[other]] += np.exp(row[other] / 0.07)
    expected /= expected.sum(1, keepdims=True)
    assert_close(knn(x, target, test_x, k=k), expected, 1e-9)


def test_knn_sees_directions_only() -> None:
    (x, y, target), (test_x, _, _) = _clusters(), _clusters(1)
    scaled = test_x * np.linspace(0.01, 100, len(test_x))[:, None]
    assert_close(knn(x, target, scaled), knn(x, target, test_x), 1e-9)
    assert (knn(x, target, x, k=1).argmax(1) == y).all()
    assert_close(knn(x[:2], target[[0, 0]], x, k=50), np.tile([1.0, 0.0, 0.0], (len(x), 1)))


def test_linear_probe_is_softmax_regression_on_scaled_features() -> None:
    (x, y, target), (test_x, _, _) = _clusters(spread=3.0), _clusters(1, spread=3.0)
    x, test_x = x * np.logspace(-3, 3, 8), test_x * np.logspace(-3, 3, 8)
    mean, deviation = x.mean(0), x.std(0)
    model = LogisticRegression(max_iter=1000).fit((x - mean) / deviation, y)
    expected = model.predict_log_proba((test_x - mean) / deviation)
    found = linear_probe(x, target, test_x)
    assert_close(found, expected, 1e-6)
    assert_close(np.exp(found).sum(1), np.ones(len(found)))


def test_linear_probe_scores_a_class_that_training_lacks_last_and_survives_constant_features() -> None:
    (x, y, target), (test_x, test_y, _) = _clusters(spread=0.1), _clusters(1, spread=0.1)
    x, test_x = np.c_[x, np.ones(len(x))], np.c_[test_x, np.ones(len(test_x))]
    with_gap = np.insert(target, 1, 0.0, axis=1)  # a class without clips
    scores = linear_probe(x, with_gap, test_x)
    assert np.isfinite(scores).all()
    assert (scores.argmax(1) == np.array([0, 2, 3])[test_y]).all()
    one = y == 0
    assert (linear_probe(x[one], with_gap[one], test_x).argmax(1) == 0).all()


def test_a_clip_far_from_all_others_does_not_end_the_probe() -> None:
    (x, _, target), (test_x, _, test_target) = _clusters(), _clusters(1)
    test_x[0] *= 1e6  # its less likely classes have probabilities that are 0 in float64
    scores = linear_probe(x, target, test_x)
    assert np.isfinite(scores).all()
    assert 0.5 < score(test_target, scores, one_class=True) <= 1


def test_clips_of_several_classes_get_a_regression_a_class() -> None:
    (x, y, _), (test_x, test_y, _) = _clusters(spread=2.0), _clusters(1, spread=2.0)
    several = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]])  # the last: every clip's
    target, test_target = several[y], several[test_y]
    assert not exclusive(target)
    scores = linear_probe(x, target, test_x)
    scaled, tested = ((part - x.mean(0)) / x.std(0) for part in (x, test_x))
    for column in range(3):
        model = LogisticRegression(max_iter=1000).fit(scaled, target[:, column])
        assert_close(scores[:, column], model.decision_function(tested), 1e-6)
    assert score(test_target, scores, one_class=False) == mean_average_precision(test_target, scores)


def test_each_round_is_trained_on_all_clips_that_are_not_of_it() -> None:
    x, y, target = _clusters(spread=3.0)
    fold = np.arange(len(x)) // 30
    found = probe({"a": x, "b": x[:, :2]}, target, fold, k=5)
    right = np.concatenate(
        [linear_probe(x[fold != n], target[fold != n], x[fold == n]).argmax(1) == y[fold == n] for n in range(3)]
    )
    assert set(found) == {"knn/a", "knn/b", "linear/a", "linear/b"}
    assert found["linear/a"] == pytest.approx(right.mean())
    assert found["linear/b"] < found["linear/a"]
    once = np.where(fold == 2, 0, -1)
    assert probe({"a": x}, target, once, k=5)["knn/a"] == accuracy(
        y[fold == 2], knn(x[fold != 2], target[fold != 2], x[fold == 2], k=5)
    )
