"""Scores of probabilities: thresholds, precision and recall at them, and calibration. Float64.

Classes that exclude each other have softmax probabilities and the highest one is the decision; others have a sigmoid
each, and a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gamut.evaluate.ranking import finite, fitting, levels_of

UNCHOSEN = 0.5  # the threshold of a class for which none can be chosen
BINS = 15  # of calibration, as in Guo et al. 2017


def probabilities(logits: np.ndarray, exclusive: bool) -> np.ndarray:
    """float64 [n, classes] of logits of that shape: softmax over classes that exclude each other, else a sigmoid."""
    logits = finite(logits)
    if not exclusive:
        return _sigmoid(logits)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit  # here: it takes long to import

    return expit(logits)


def choose_thresholds(target: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """float64 [classes]: the sigmoid probability from which on a class is taken as heard, so that its F1 is highest.

    target {0, 1} [n, classes] and logits [n, classes] of clips that judge nothing afterwards. Of equal F1s the
    highest threshold is taken; it lies halfway between the lowest probability that it lets through and the next one
    below (or 0). nan for a class that no clip has.
    """
    target, logits = fitting(target, logits)
    chosen = np.full(target.shape[1], np.nan)
    for column in np.flatnonzero(target.any(axis=0)):
        positive, scores = target[:, column], np.ascontiguousarray(logits[:, column])
        levels, place = levels_of(positive, scores)
        taken = np.bincount(place, minlength=2 * len(levels) + 1).cumsum()[1::2]
        found = np.bincount(place[positive] // 2, minlength=len(levels)).cumsum()
        last = levels[int(np.argmax(2 * found / (taken + found[-1])))]
        under = scores[scores < last]
        chosen[column] = (_sigmoid(last) + (_sigmoid(under.max()) if len(under) else 0.0)) / 2
    return chosen


def decided(target: np.ndarray, logits: np.ndarray, exclusive: bool, thresholds: np.ndarray | None) -> np.ndarray:
    """bool [n, classes]: what is taken as heard, the highest class of each clip or all that reach their threshold.

    thresholds: of probabilities, float [classes], nan or None where none could be chosen (UNCHOSEN then).
    """
    target, logits = fitting(target, logits)
    if exclusive:
        return logits.argmax(axis=1)[:, None] == np.arange(logits.shape[1])
    limits = np.full(logits.shape[1], UNCHOSEN) if thresholds is None else np.asarray(thresholds, np.float64)
    return _sigmoid(logits) >= np.where(np.isnan(limits), UNCHOSEN, limits)


def precision_recall(target: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(precision, recall, F1) of each class, float64 [classes], of bool [n, classes]: what is there, what is taken.

    nan where they are 0 / 0: the precision of a class that is never taken, the recall of one that no clip has.
    """
    target = np.asarray(target).astype(bool)
    both, there, said = (part.sum(axis=0, dtype=np.float64) for part in (target & taken, target, taken))
    with np.errstate(invalid="ignore"):
        return both / said, both / there, 2 * both / (there + said)


@dataclass(frozen=True)
class Reliability:
    """What probabilities come to, in bins of equal width from 0 to 1 (upper ends included): float64 [bins]."""

    clips: np.ndarray  # decisions in each bin
    said: np.ndarray  # their mean probability; nan for an empty bin
    true: np.ndarray  # the share of them that is right; nan for an empty bin

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over decisions of |said - true| of their bin. nan of none."""
        some = self.clips > 0
        gaps = np.abs(self.said[some] - self.true[some])
        return float(np.average(gaps, weights=self.clips[some])) if some.any() else float("nan")


def reliability(right: np.ndarray, probability: np.ndarray, bins: int = BINS) -> Reliability:
    """Of decisions with a probability each, whether they are right: bool and float, of one shape."""
    right, probability = np.asarray(right).ravel().astype(np.float64), np.asarray(probability, np.float64).ravel()
    place = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    clips = np.bincount(place, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        said, true = (np.bincount(place, values, bins) / clips for values in (probability, right))
    return Reliability(clips, said, true)


def calibration(target: np.ndarray, logits: np.ndarray, exclusive: bool, bins: int = BINS) -> Reliability:
    """Of a classifier: of the highest class of each clip (Guo et al. 2017), or of every class of every clip where
    classes do not exclude each other."""
    target, logits = fitting(target, logits)
    probability = probabilities(logits, exclusive)
    if not exclusive:
        return reliability(target, probability, bins)
    best = logits.argmax(axis=1)[:, None]
    return reliability(np.take_along_axis(target, best, 1), np.take_along_axis(probability, best, 1), bins)
