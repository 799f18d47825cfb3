"""How much a frozen representation knows: nearest neighbours and a linear probe.

Targets are rows of zeros and ones, with one or several ones a clip: the same functions score sets whose clips have one
class each and sets whose clips have several.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from gamut.evaluate import usual_metric

NEIGHBOURS = 20
TEMPERATURE = 0.07
ABSENT = -1e9  # the score of a class that no training clip has: below any other


def knn(
    train_x: np.ndarray,
    train_target: np.ndarray,
    test_x: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """float64 [m, classes]: each class's share of the votes of the k nearest training clips, weighted as in DINO.

    Nearness is cosine similarity, and a neighbour's vote weighs exp(similarity / temperature) (Wu et al. 2018, section
    3.4; Caron et al. 2021, appendix F, k = 20). train_x [n, dim], test_x [m, dim]: features; train_target {0, 1}
    [n, classes]. With fewer than k training clips all of them vote.
    """
    x, target = np.asarray(train_x, np.float64), np.asarray(train_target, np.float64)
    near = NearestNeighbors(n_neighbors=min(k, len(x)), metric="cosine", algorithm="brute").fit(x)
    distance, which = near.kneighbors(np.asarray(test_x, np.float64))
    weight = np.exp((distance[:, :1] - distance) / temperature)  # 1 for the nearest, so nothing overflows
    return np.einsum("mk,mkc->mc", weight, target[which]) / weight.sum(1, keepdims=True)


def linear_probe(
    train_x: np.ndarray,
    train_target: np.ndarray,
    test_x: np.ndarray,
    *,
    strength: float = 1.0,
    iterations: int = 1000,
) -> np.ndarray:
    """float64 [m, classes]: scores of logistic regression on scaled features.

    Every feature is scaled to mean 0 and deviation 1 over the training clips; the regression carries an L2 penalty
    with inverse weight `strength` (scikit-learn's C). Where every training clip has one class it is softmax regression
    and the scores are log-probabilities; else a regression of its own for each class, and the scores are log-odds. A
    class that no training clip has scores below all others. train_x [n, dim]; train_target {0, 1} [n, classes];
    test_x [m, dim].
    """
    target = np.asarray(train_target).astype(bool)
    scaler = StandardScaler().fit(np.asarray(train_x, np.float64))
    x, tested = (scaler.transform(np.asarray(each, np.float64)) for each in (train_x, test_x))
    scores = np.full((len(tested), target.shape[1]), ABSENT)
    if exclusive(target):
        known = target.argmax(1)
        classes = np.unique(known)
        if len(classes) == 1:
            scores[:, classes] = 0.0
        else:
            model = LogisticRegression(C=strength, max_iter=iterations).fit(x, known)
            with np.errstate(divide="ignore"):  # far from all training clips a probability is 0
                scores[:, classes] = np.maximum(model.predict_log_proba(tested), ABSENT / 2)
        return scores
    for column in np.flatnonzero(target.any(axis=0)):
        if target[:, column].all():
            scores[:, column] = -ABSENT
        else:
            model = LogisticRegression(C=strength, max_iter=iterations).fit(x, target[:, column])
            scores[:, column] = model.decision_function(tested)
    return scores


def exclusive(target: np.ndarray) -> bool:
    """Whether every clip of a target {0, 1} [n, classes] has exactly one class."""
    return bool((np.asarray(target).astype(bool).sum(axis=1) == 1).all())


def score(target: np.ndarray, scores: np.ndarray, one_class: bool) -> float:
    """The usual metric (`gamut.evaluate.usual_metric`) of some clips."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that some of the clips lacks
        return usual_metric(one_class).score(np.asarray(target), scores)


def held_out(fold: np.ndarray) -> Iterator[np.ndarray]:
    """bool [n] of each fold, in order of its number: which clips are scored by what is trained on the others.

    fold: int [n] of each clip, -1 for one that is only trained on.

    >>> [scored.tolist() for scored in held_out(np.array([5, -1, 2]))]
    [[False, False, True], [True, False, False]]
    """
    for number in np.unique(fold):
        if number >= 0:
            yield fold == number


def probe(
    features: Mapping[str, np.ndarray], target: np.ndarray, fold: np.ndarray, *, k: int = NEIGHBOURS
) -> dict[str, float]:
    """{"knn/NAME": ..., "linear/NAME": ...}: what each kind of feature knows, as shares of 1.

    features: NAME -> [n, dim]; target {0, 1} [n, classes]; fold int [n] of each clip, -1 for one that is
    only trained on. A fold is scored by what was trained on all clips that are not of it (cross-validation). The score
    (`score`) is the mean over folds, each counting by its clips.
    """
    target, fold = np.asarray(target).astype(bool), np.asarray(fold)
    one_class = exclusive(target)
    results: dict[str, float] = {}
    for name, values in features.items():
        for kind in ("knn", "linear"):
            total = 0.0
            for scored in held_out(fold):
                known = (values[~scored], target[~scored], values[scored])
                scores = knn(*known, k=k) if kind == "knn" else linear_probe(*known)
                total += score(target[scored], scores, one_class) * int(scored.sum())
            results[f"{kind}/{name}"] = total / int((fold >= 0).sum())
    return results
