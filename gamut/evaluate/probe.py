"""How much a frozen representation knows: nearest neighbours and a linear probe."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def knn_accuracy(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, k: int = 10
) -> float:
    """Accuracy of a vote of the k nearest training clips by cosine similarity, one vote each.

    train_x [n, dim], test_x [m, dim]: features; train_y int [n], test_y int [m]: classes. With fewer than k training
    clips all of them vote.
    """
    train_x, test_x = _unit(train_x), _unit(test_x)
    model = KNeighborsClassifier(n_neighbors=min(k, len(train_x)), algorithm="brute")
    return float(np.mean(model.fit(train_x, train_y).predict(test_x) == np.asarray(test_y), dtype=np.float64))


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    strength: float = 1.0,
    iterations: int = 1000,
) -> np.ndarray:
    """float64 [m, classes of train_y in rising order]: log-probabilities of softmax regression on scaled features.

    Every feature is scaled to mean 0 and deviation 1 over the training clips; the regression carries an L2 penalty
    with inverse weight `strength` (scikit-learn's C). train_x [n, dim], train_y int [n], test_x [m, dim].
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations))
    model.fit(np.asarray(train_x, np.float64), np.asarray(train_y))
    return model.predict_log_proba(np.asarray(test_x, np.float64))


def linear_probe_accuracy(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, *, strength: float = 1.0
) -> float:
    """Accuracy of `linear_probe`; a test class that the training clips do not have counts as wrong."""
    best = linear_probe(train_x, train_y, test_x, strength=strength).argmax(axis=1)
    return float(np.mean(np.unique(train_y)[best] == np.asarray(test_y), dtype=np.float64))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
