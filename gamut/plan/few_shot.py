"""Class-balanced few-shot subsets: so many clips of every class."""

from __future__ import annotations

import numpy as np


def per_class(label_offset: np.ndarray, label: np.ndarray, keys: np.ndarray, number: int) -> np.ndarray:
    """int64 [k], ascending: places of clips such that every class has at least `number` of them, or all that it has.

    A clip counts for each of its labels. Classes are served from the rarest to the most common; a class takes, of its
    clips that were not taken for another, those first that bring the fewest labels of classes which are full already,
    then by key. With one label a clip every class has exactly `number`, or all. A smaller `number` is not always a part
    of a larger one where clips have several labels.

    Args:
        label_offset: int64 [n + 1]; label: int [labels], class ids; keys: uint64 [n], random, what ties are decided by.

    >>> per_class(np.arange(7), np.array([0, 0, 0, 1, 1, 1]), np.array([3, 1, 2, 9, 8, 7], np.uint64), 2)
    array([1, 2, 4, 5])
    """
    clip = np.repeat(np.arange(len(keys), dtype=np.int64), np.diff(label_offset))
    there = np.bincount(label)
    by_class = np.split(clip[np.argsort(label, kind="stable")], np.cumsum(there)[:-1])
    have = np.zeros(len(there), np.int64)
    taken = np.zeros(len(keys), bool)
    for one in np.argsort(there, kind="stable").tolist():
        free = np.unique(by_class[one])
        free = free[~taken[free]]
        missing = number - int(have[one])
        if missing <= 0 or not len(free):
            continue
        full = np.concatenate([[0], np.cumsum((have >= number)[label])])
        crowded = full[label_offset[free + 1]] - full[label_offset[free]]
        new = free[np.lexsort((keys[free], crowded))[:missing]]
        taken[new] = True
        for place in new.tolist():
            have[np.unique(label[label_offset[place] : label_offset[place + 1]])] += 1
    return np.flatnonzero(taken)
