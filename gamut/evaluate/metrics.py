"""Scores of classifiers, in float64, each computed once over all clips.

Targets come first, scores second, as in scikit-learn. Scores may be logits: only their order within a class (or, for
accuracy, within a clip) counts, and a sigmoid in float32 makes ties where it saturates.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from gamut.evaluate import Metric
from gamut.randomness import Purpose, integers, key

BLOCK = 1 << 22  # resampled clips handled at a time by the bootstrap: 32 MB an array


@dataclass(frozen=True)
class Tagging:
    """Macro means over the classes that can be scored, as AudioSet is scored."""

    mean_average_precision: float
    auc: float  # mean area under the ROC curve
    d_prime: float  # sqrt(2) * Phi^-1(auc)
    average_precision: np.ndarray  # float64 [classes], nan where a class has no positive
    classes: int  # classes in the mean average precision
    without_positives: int  # classes left out of both means: no clip has them
    without_negatives: int  # classes left out of the AUC as well: every clip has them


def correct(target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool [n]: the highest of scores [n, classes] is the class target [n]; the first of equal ones counts."""
    target, scores = np.asarray(target), _finite(scores)
    if target.shape != scores.shape[:1]:
        raise ValueError(f"targets of shape {target.shape} do not fit scores of shape {scores.shape}")
    return scores.argmax(axis=1) == target


def accuracy(target: np.ndarray, scores: np.ndarray) -> float:
    """Share of clips whose highest score is their class: target int [n], scores [n, classes]. nan for no clips."""
    right = correct(target, scores)
    return float(right.mean(dtype=np.float64)) if len(right) else math.nan


def confusion(target: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: clips by true class (rows) and predicted class (columns)."""
    target, predicted = np.asarray(target, np.int64), np.asarray(predicted, np.int64)
    for name, ids in (("target", target), ("predicted class", predicted)):
        if len(ids) and not 0 <= ids.min() <= ids.max() < classes:
            raise ValueError(f"a {name} lies outside 0..{classes - 1}")
    return np.bincount(target * classes + predicted, minlength=classes**2).reshape(classes, classes)


def mean_average_precision(target: np.ndarray, scores: np.ndarray) -> float:
    """Macro mean of the classes' average precision: target {0, 1} [n, classes], scores [n, classes].

    Classes without a positive are left out, with a warning that counts them. nan where there is no other class.
    """
    _, precision = _average_precision(target, scores)
    return _mean(precision)


def tagging(target: np.ndarray, scores: np.ndarray) -> Tagging:
    """All metrics of multi-label tagging: target {0, 1} [n, classes], scores [n, classes].

    Classes without a positive are left out of every mean, and counted, with a warning: a plain scikit-learn mean
    would take 0.0 for their average precision and has no AUC.
    """
    target, precision = _average_precision(target, scores)
    positives = target.sum(axis=0)
    everywhere = (positives == len(target)) & (positives > 0)
    scored = np.flatnonzero((positives > 0) & ~everywhere)
    scores = np.asarray(scores, np.float64)
    from sklearn.metrics import roc_auc_score  # here and below: they take long to import

    area = _mean(np.array([roc_auc_score(target[:, c], scores[:, c]) for c in scored], np.float64))
    return Tagging(
        mean_average_precision=_mean(precision),
        auc=area,
        d_prime=d_prime(area),
        average_precision=precision,
        classes=int((positives > 0).sum()),
        without_positives=int((positives == 0).sum()),
        without_negatives=int(everywhere.sum()),
    )


def d_prime(auc: float) -> float:
    """sqrt(2) * Phi^-1(auc): infinite for a perfect AUC, nan for none."""
    from scipy.special import ndtri

    return float(math.sqrt(2.0) * ndtri(auc))


def paired_bootstrap(
    correct_a: np.ndarray, correct_b: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of a - b, low, high): the difference of two models on the same clips and its 95 % interval.

    correct_a, correct_b [n]: right or wrong, or any score, a clip (the mean over seeds, say), in the same order of
    clips. Clips are drawn with replacement, both models' scores of a clip together; the interval runs from the 2.5th
    to the 97.5th percentile of the resampled means (Efron's percentile interval). The same seed gives the same one.
    """
    a, b = np.asarray(correct_a, np.float64), np.asarray(correct_b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two models are compared on the same clips, not on {a.shape} and {b.shape}")
    difference = a - b
    n = len(difference)
    means = np.empty(resamples, np.float64)
    rows = max(1, BLOCK // n)
    for first in range(0, resamples, rows):
        sample = np.arange(first, min(resamples, first + rows))[:, None]
        drawn = integers(key(seed, Purpose.SAMPLE, sample, np.arange(n)), 0, n)
        means[sample[:, 0]] = difference[drawn].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def _average_precision(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bool [n, classes] targets, float64 [classes] average precision, nan for a class without a positive)."""
    target, scores = np.asarray(target).astype(bool), _finite(scores)
    if target.shape != scores.shape:
        raise ValueError(f"targets of shape {target.shape} do not fit scores of shape {scores.shape}")
    from sklearn.metrics import average_precision_score

    precision = np.full(target.shape[1], np.nan)
    with_positives = np.asarray(target.any(axis=0))
    for c in np.flatnonzero(with_positives):
        precision[c] = average_precision_score(target[:, c], scores[:, c])
    if not with_positives.all():
        warnings.warn(
            f"{int((~with_positives).sum())} of {len(with_positives)} classes have no positive clip and are left out "
            "of the mean.",
            stacklevel=3,
        )
    return target, precision


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores have one row a clip and one column a class, not shape {scores.shape}")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise ValueError(f"scores of {len(bad)} clips are not finite, the first in row {bad[0]}")
    return scores


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _hits(target: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return correct(target.argmax(axis=1), logits).astype(np.float64)


def _hits_by_class(target: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """float64 [classes]: share of each class's clips that were classified correctly."""
    counts = confusion(target.argmax(1), logits.argmax(1), target.shape[1])
    clips = counts.sum(1)
    return np.where(clips > 0, np.diag(counts) / np.maximum(clips, 1), np.nan)


def _all_of_tagging(target: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    found = tagging(target, logits)
    return {
        "mAP": found.mean_average_precision,
        "AUC": found.auc,
        "d_prime": found.d_prime,
        "classes_without_positives": float(found.without_positives),
    }


ACCURACY = Metric(
    "accuracy",
    lambda target, logits: accuracy(target.argmax(axis=1), logits),
    by_class=_hits_by_class,
    by_clip=_hits,
    one_label=True,
    confusion=True,
)
MAP = Metric(
    "mAP",
    mean_average_precision,
    by_class=lambda target, logits: _average_precision(target, logits)[1],
    everything=_all_of_tagging,
)
