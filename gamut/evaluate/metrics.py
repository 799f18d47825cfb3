"""Scores of classifiers, in float64, each computed once over all clips.

Targets come first, scores second, as in scikit-learn. Scores may be logits: only their order within a class (or, for
accuracy, within a clip) counts, and a sigmoid in float32 makes ties where it saturates.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np

from gamut.evaluate import Metric
from gamut.evaluate.ranking import in_top, label_precision, lwlrap, mean_of_known, precision_and_area, weighted_lwlrap


@dataclass(frozen=True)
class Tagging:
    """Macro means over the classes that can be scored, as AudioSet is scored."""

    mean_average_precision: float
    auc: float  # mean area under the ROC curve
    d_prime: float  # sqrt(2) * Phi^-1(auc)
    average_precision: np.ndarray  # float64 [classes], nan where a class has no positive
    areas: np.ndarray  # float64 [classes], under the ROC curve; nan where a class has no positive or no negative
    classes: int  # classes in the mean average precision
    without_positives: int  # classes left out of both means: no clip has them
    without_negatives: int  # classes left out of the AUC as well: every clip has them


def correct(target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool [n]: the highest of scores [n, classes] is the class target [n]; the first of equal ones counts."""
    return in_top(target, scores, 1)


def accuracy(target: np.ndarray, scores: np.ndarray) -> float:
    """Share of clips whose highest score is their class: target int [n], scores [n, classes]. nan for no clips."""
    return _share(correct(target, scores))


def top_k_accuracy(target: np.ndarray, scores: np.ndarray, k: int) -> float:
    """Share of clips whose class is among their k highest scores: target int [n], scores [n, classes]. nan for no
    clips."""
    return _share(in_top(target, scores, k))


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
    return tagging(target, scores, stacklevel=3).mean_average_precision


def tagging(target: np.ndarray, scores: np.ndarray, stacklevel: int = 2) -> Tagging:
    """All metrics of multi-label tagging: target {0, 1} [n, classes], scores [n, classes].

    Classes without a positive are left out of every mean, and counted, with a warning: a plain scikit-learn mean
    would take 0.0 for their average precision and has no AUC.
    """
    precision, areas = precision_and_area(target, scores)
    positives = np.asarray(target).astype(bool).sum(axis=0)
    without = int((positives == 0).sum())
    if without:
        warnings.warn(
            f"{without} of {len(positives)} classes have no positive clip and are left out of the mean.",
            stacklevel=stacklevel,
        )
    area = float(mean_of_known(areas))
    return Tagging(
        mean_average_precision=float(mean_of_known(precision)),
        auc=area,
        d_prime=float(d_prime(area)),
        average_precision=precision,
        areas=areas,
        classes=len(positives) - without,
        without_positives=without,
        without_negatives=int(((positives == len(target)) & (positives > 0)).sum()),
    )


def d_prime(auc: float | np.ndarray) -> np.ndarray:
    """sqrt(2) * Phi^-1(auc): infinite for a perfect AUC, nan for none."""
    from scipy.special import ndtri

    return math.sqrt(2.0) * ndtri(auc)


def _share(right: np.ndarray) -> float:
    return float(right.mean(dtype=np.float64)) if len(right) else math.nan


def _hits(k: int, target: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return in_top(target.argmax(axis=1), logits, k).astype(np.float64)


def _hits_by_class(k: int, target: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """float64 [classes]: share of each class's clips that have it among their k highest scores."""
    label, classes = target.argmax(axis=1), target.shape[1]
    clips, right = np.bincount(label, minlength=classes), np.bincount(label, _hits(k, target, logits), classes)
    return np.where(clips > 0, right / np.maximum(clips, 1), np.nan)


def _label_precision_by_class(target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """float64 [classes]: the mean precision at the labels of each class, as DCASE 2019 lists it beside the lwlrap."""
    _, label, precision = label_precision(target, scores)
    classes = np.asarray(target).shape[1]
    with np.errstate(invalid="ignore"):
        return np.bincount(label, precision, classes) / np.bincount(label, minlength=classes)


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
    by_class=partial(_hits_by_class, 1),
    by_clip=partial(_hits, 1),
    one_label=True,
    confusion=True,
)
TOP_5 = Metric(
    "top-5",
    lambda target, logits: top_k_accuracy(target.argmax(axis=1), logits, 5),
    by_class=partial(_hits_by_class, 5),
    by_clip=partial(_hits, 5),
    one_label=True,
    confusion=True,
)
MAP = Metric(
    "mAP",
    mean_average_precision,
    by_class=lambda target, logits: precision_and_area(target, logits)[0],
    weighted=lambda *clips: mean_of_known(precision_and_area(*clips)[0]),
    everything=_all_of_tagging,
)
AUC = Metric(
    "AUC",
    lambda target, logits: tagging(target, logits).auc,
    by_class=lambda target, logits: precision_and_area(target, logits)[1],
    weighted=lambda *clips: mean_of_known(precision_and_area(*clips)[1]),
    everything=_all_of_tagging,
    percent=False,
)
LWLRAP = Metric("lwlrap", lwlrap, by_class=_label_precision_by_class, weighted=weighted_lwlrap, percent=False)
