"""Probes against closed forms and a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from gamut.evaluate.probe import knn_accuracy, linear_probe, linear_probe_accuracy


def _clusters(seed: int = 0, clips: int = 90, classes: int = 3, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % classes
    centres = np.random.default_rng(99).normal(size=(classes, 8)) * 2
    return centres[labels] + rng.normal(size=(clips, 8)) * spread, labels


@pytest.mark.parametrize("k", [1, 5])
def test_knn_equals_a_count_of_votes(k: int) -> None:
    (x, y), (test_x, test_y) = _clusters(), _clusters(1)
    cosine = (test_x / np.linalg.norm(test_x, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    votes = [np.bincount(y[np.argsort(-row)[:k]], minlength=3).argmax() for row in cosine]
    assert knn_accuracy(x, y, test_x, test_y, k) == np.mean(votes == test_y)


def test_knn_sees_directions_only() -> None:
    (x, y), (test_x, test_y) = _clusters(), _clusters(1)
    scaled = test_x * np.linspace(0.01, 100, len(test_x))[:, None]
    assert knn_accuracy(x, y, scaled, test_y) == knn_accuracy(x, y, test_x, test_y)
    assert knn_accuracy(x, y, x, y, k=1) == 1.0
    assert knn_accuracy(x[:2], np.array([7, 7]), x, np.full(len(x), 7), k=50) == 1.0


def test_linear_probe_is_softmax_regression_on_scaled_features() -> None:
    (x, y), (test_x, test_y) = _clusters(spread=3.0), _clusters(1, spread=3.0)
    x, test_x = x * np.logspace(-3, 3, 8), test_x * np.logspace(-3, 3, 8)
    mean, deviation = x.mean(0), x.std(0)
    model = LogisticRegression(max_iter=1000).fit((x - mean) / deviation, y)
    expected = model.predict_log_proba((test_x - mean) / deviation)
    found = linear_probe(x, y, test_x)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(1), 1.0)
    assert linear_probe_accuracy(x, y, test_x, test_y) == np.mean(expected.argmax(1) == test_y)


def test_linear_probe_names_classes_as_given_and_survives_constant_features() -> None:
    (x, y), (test_x, test_y) = _clusters(spread=0.1), _clusters(1, spread=0.1)
    x, test_x = np.c_[x, np.ones(len(x))], np.c_[test_x, np.ones(len(test_x))]
    names = np.array([40, 3, 17])
    assert linear_probe_accuracy(x, names[y], test_x, names[test_y]) == 1.0
    assert linear_probe_accuracy(x, names[y], test_x, np.full(len(test_x), 99)) == 0.0
