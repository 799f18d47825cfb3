"""How far a score would move with other clips: bootstrap intervals over clips, of one model and of two side by side.

Clips are drawn with replacement, and only counted: a score is computed from how often each clip was drawn, nothing is
sorted again. The draws depend on the seed and the number of clips alone, so two models that are scored on the same
clips, in the same order, are compared draw by draw.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gamut.evaluate import Metric
from gamut.randomness import Purpose, integers, key

BLOCK = 1 << 22  # drawn clips handled at a time: 32 MB an array
COUNTS = 1 << 25  # numbers of draws x clips that are counted at a time: 128 MB


def resampled(
    metric: Metric, target: np.ndarray, logits: np.ndarray, resamples: int = 1000, seed: int = 0
) -> np.ndarray | None:
    """float64 [resamples]: the metric of as many sets of n clips, drawn with replacement from the n of target {0, 1}
    and logits [n, classes]; nan where it has no value. None for a metric that knows no weights of clips.

    The difference of two models on the same clips, a draw each, is the difference of their arrays.
    """
    if not metric.has_interval:
        return None
    n = len(target)
    mean = metric.by_clip(target, logits) if metric.by_clip else None
    found = np.full(resamples, np.nan)
    rows = max(1, COUNTS // max(1, n))
    for first in range(0, resamples, rows) if n else ():
        some = slice(first, min(resamples, first + rows))
        counts = np.empty((n, some.stop - some.start), np.float32)
        for sample, drawn in _drawn(n, some.start, some.stop, seed):
            flat = (drawn + n * np.arange(len(drawn))[:, None]).ravel()
            counts[:, sample - some.start] = np.bincount(flat, minlength=drawn.size).reshape(drawn.shape).T
        if mean is not None:
            found[some] = mean @ counts / n
        elif metric.weighted:
            found[some] = metric.weighted(target, logits, counts)
    return found


def ends(draws: np.ndarray) -> tuple[float, float]:
    """(low, high): the 95 % interval of resampled scores, their 2.5th to 97.5th percentile (Efron's percentile
    interval). Draws without a value are left out; nan where none has one."""
    draws = draws[~np.isnan(draws)]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (np.nan, np.nan)
    return float(low), float(high)


def paired_bootstrap(
    correct_a: np.ndarray, correct_b: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of a - b, low, high): the difference of two models on the same clips and its 95 % interval.

    correct_a, correct_b [n]: right or wrong, or any score, a clip (the mean over seeds, say), in the same order of
    clips. Both models' scores of a clip are drawn together. The same seed gives the same interval.
    """
    a, b = np.asarray(correct_a, np.float64), np.asarray(correct_b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two models are compared on the same clips, not on {a.shape} and {b.shape}")
    difference = a - b
    means = np.empty(resamples, np.float64)
    for sample, drawn in _drawn(len(difference), 0, resamples, seed):
        means[sample] = difference[drawn].mean(axis=1)
    return float(difference.mean()), *ends(means)


def _drawn(n: int, first: int, last: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(int64 [k], int64 [k, n]): numbers of draws, and the clips of each, for the draws from `first` up to `last`."""
    rows = max(1, BLOCK // n)
    for begin in range(first, last, rows):
        sample = np.arange(begin, min(last, begin + rows))
        yield sample, integers(key(seed, Purpose.SAMPLE, sample[:, None], np.arange(n)), 0, n)
