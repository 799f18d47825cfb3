"""Scores that go by order: average precision, area under the ROC curve, lwlrap, top-k. Float64, all classes at once.

Only a class's positives need to be looked at: every other clip lies above, at or below the score of each of them. So a
class is counted, not sorted, and counted once for any number of weightings of its clips (a bootstrap's draws).
"""

from __future__ import annotations

import numpy as np

PAIRS = 1 << 24  # comparisons made at a time


def finite(scores: np.ndarray) -> np.ndarray:
    """Scores [n, classes] as float64. Raises ValueError for another shape, or where some are not finite."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores have one row a clip and one column a class, not shape {scores.shape}")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise ValueError(f"scores of {len(bad)} clips are not finite, the first in row {bad[0]}")
    return scores


def fitting(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bool targets, float64 scores), both [n, classes]. Raises ValueError where they do not fit each other."""
    target, scores = np.asarray(target).astype(bool), finite(scores)
    if target.shape != scores.shape:
        raise ValueError(f"targets of shape {target.shape} do not fit scores of shape {scores.shape}")
    return target, scores


def levels_of(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [levels], int64 [n]): the scores of one class's positives, highest first and each once, and the place of
    every clip among them: 2 j + 1 at level j, 2 j above it and below the level before.

    positive bool [n], scores float64 [n].
    """
    levels = np.unique(scores[positive])
    below = np.searchsorted(levels, scores)
    at = (below < len(levels)) & (levels[np.minimum(below, len(levels) - 1)] == scores) if len(levels) else False
    return levels[::-1], 2 * (len(levels) - below) - at


def precision_and_area(
    target: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(average precision, area under the ROC curve), float64 [classes], each as scikit-learn has it, ties too.

    target {0, 1} [n, classes], scores [n, classes]. The precision is nan for a class without a positive, the area
    for one without a negative as well. weights [n, draws], whole numbers: how often each clip counts in each of several
    draws; the results are [classes, draws] then.
    """
    target, scores = fitting(target, scores)
    counts = np.ones((len(target), 1), np.float32) if weights is None else np.asarray(weights, np.float32)
    clips = counts.sum(axis=0, dtype=np.float64)
    precision = np.full((target.shape[1], counts.shape[1]), np.nan)
    area = precision.copy()
    for column in np.flatnonzero(target.any(axis=0)):
        positive = target[:, column]
        levels, place = levels_of(positive, np.ascontiguousarray(scores[:, column]))
        every = _summed(place, counts, 2 * len(levels) + 1)
        hit = _summed(place[positive] // 2, counts[positive], len(levels))
        through, found = every.cumsum(axis=0)[1::2], hit.cumsum(axis=0)
        positives = found[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision[column] = (hit * (found / np.maximum(through, 1))).sum(axis=0) / positives
            above = through - found  # negatives no lower than each level
            beaten = (clips - positives) - above + (every[1::2] - hit) / 2
            area[column] = (hit * beaten).sum(axis=0) / (positives * (clips - positives))
    return (precision[:, 0], area[:, 0]) if weights is None else (precision, area)


def _summed(place: np.ndarray, counts: np.ndarray, places: int) -> np.ndarray:
    """float64 [places, draws]: sums of counts float32 [n, draws] of the clips at each place, exact up to 2 ** 24."""
    if counts.shape[1] == 1:
        return np.bincount(place, counts[:, 0], places)[:, None]
    from scipy.sparse import csr_array  # here: it takes long to import

    order = np.argsort(place, kind="stable")
    ends = np.zeros(places + 1, np.int64)
    np.cumsum(np.bincount(place, minlength=places), out=ends[1:])
    at = csr_array((np.ones(len(place), np.float32), order, ends), shape=(places, len(place)))
    return (at @ counts).astype(np.float64)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """float64 [...]: mean over the first axis of values, those with nan left out; nan where there is no other."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)


def label_precision(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(clip, class, precision) of every label of every clip, int64, int64 and float64 [labels].

    The precision at a label: of the classes that the clip ranks no lower, the share that it has (DCASE 2019, task 2).
    """
    target, scores = fitting(target, scores)
    clip, label = np.nonzero(target)
    precision = np.empty(len(clip))
    step = max(1, PAIRS // max(1, target.shape[1]))
    for some in (slice(first, first + step) for first in range(0, len(clip), step)):
        rows = clip[some]
        no_lower = scores[rows] >= scores[rows, label[some]][:, None]
        precision[some] = (no_lower & target[rows]).sum(axis=1) / no_lower.sum(axis=1)
    return clip, label, precision


def lwlrap(target: np.ndarray, scores: np.ndarray) -> float:
    """Label-weighted label-ranking average precision of DCASE 2019, task 2: the mean of `label_precision` over labels.

    Clips without a label have no part in it; nan where none has one. target {0, 1} [n, classes], scores [n, classes].
    """
    return float(weighted_lwlrap(target, scores, np.ones((len(np.asarray(target)), 1)))[0])


def weighted_lwlrap(target: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [draws]: `lwlrap` of clips that count as often as weights [n, draws] say."""
    clip, _, precision = label_precision(target, scores)
    sums, labels = (np.bincount(clip, values, len(weights)) for values in (precision, None))
    with np.errstate(invalid="ignore"):
        return (sums @ weights) / (labels @ weights)


def in_top(target: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """bool [n]: the class target int [n] is among the k highest scores [n, classes]; the first of equal ones counts."""
    target, scores = np.asarray(target), finite(scores)
    if target.shape != scores.shape[:1]:
        raise ValueError(f"targets of shape {target.shape} do not fit scores of shape {scores.shape}")
    own = scores[np.arange(len(target)), target][:, None]
    before = np.arange(scores.shape[1]) < target[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1) < k
