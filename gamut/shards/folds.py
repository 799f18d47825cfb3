"""Folds for sets that have no official ones: by hashes, so that everybody who converts a set has the same."""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from gamut.errors import ShardError

FOLD = "fold"  # the column
FOLDS = 5
OFFICIAL = ("split", FOLD)  # columns of sets that say themselves what is trained on


def folds_for(
    columns: Sequence[str], labels: Sequence[str], folder: Path, asked: int | None, official: bool = False
) -> int:
    """How many folds a set with these columns and classes gets: as many as are asked for (0: none), else FOLDS where it
    has classes and no columns of OFFICIAL; none where its layout has `official` splits in other columns, nor where an
    earlier version, which made none, has begun it in `folder`.

    Raises ShardError where folds are asked for of a set that has its own.
    """
    if asked and FOLD in columns:
        raise ShardError(f"The set has a column {FOLD} of its own. Leave --folds out, or rename that column.")
    if asked is not None:
        return asked
    own = official or bool(set(OFFICIAL) & set(columns))
    return FOLDS if labels and not own and not _begun_without(folder) else 0


def _begun_without(folder: Path) -> bool:
    for name in ("convert.json", "index.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if FOLD not in json.loads((folder / "index" / name).read_bytes())["columns"]:
                return True
    return False


def told(name: str, folds: int, official: bool, together: str = "") -> str:
    """The sentence about the folds that a set was given; together: what is not parted by them."""
    return (
        ("" if official else f"{name} has no official splits. ")
        + f"The column {FOLD} parts the clips of {name} into {folds} folds by hash, each class evenly"
        + (f" and {together} together" if together else "")
        + "; --folds 0 leaves it out."
    )


def hash_of_name(name: str) -> int:
    """64 bits (xxh3) of a class, clip or group, other ones than clips are ordered by within the shards."""
    return xxhash.xxh3_64_intdigest(f"{FOLD}/{name}".encode(errors="surrogateescape"))


def folds_of(groups: np.ndarray, strata: np.ndarray, classes: Sequence[int], folds: int) -> np.ndarray:
    """int64 [n], 1 to `folds`: the fold of each clip.

    groups: uint64 [n], a hash of what may not be parted: of the clip's own name where that is the clip; strata: int
    [n], its class, or -1; classes: `hash_of_name` of each class.

    The groups of a class lie in the order of their hash, which is cut into `folds` stretches of equally many clips. So
    the clips of a class are spread evenly, to one clip where there are no groups; and a clip more moves at most
    `folds` - 1 others, at the borders of the stretches. The first fold is another for each class, by its name: classes
    with fewer clips than folds do not all leave out the same.

    >>> folds_of(np.array([5, 1, 4, 2, 3, 3], np.uint64), np.zeros(6, int), [2], 3).tolist()
    [2, 3, 2, 3, 1, 1]
    """
    own, member = np.unique(groups, return_inverse=True)
    size = np.bincount(member, minlength=len(own))
    # A group with clips of several classes is of that whose name has the smallest hash, in whatever order they come.
    turns = np.array([*classes, 0], np.uint64)  # [-1]: of clips without a class
    by_group = np.lexsort((turns[strata], member))
    stratum = np.asarray(strata)[by_group][np.concatenate([[0], np.cumsum(size)[:-1]])] if len(own) else strata
    order = np.lexsort((own, stratum))
    fold = np.empty(len(own), np.int64)
    for stretch in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1) if len(order) else []:
        sizes = size[stretch]
        middle = np.cumsum(sizes) * 2 - sizes  # twice the clips before the middle of each group: whole numbers
        turn = int(turns[stratum[stretch[0]]]) % folds
        fold[stretch] = (middle * folds // (2 * int(sizes.sum())) + turn) % folds + 1
    return fold[member]


class Strata:
    """The class that a clip counts for: the rarest of its labels."""

    def __init__(self) -> None:
        self._labels, self._count = array("i"), array("i")

    def add(self, labels: Sequence[int]) -> None:
        self._labels.extend(labels)
        self._count.append(len(labels))

    def rarest(self) -> np.ndarray:
        """int64 [n]: class ids; -1 for clips without a label."""
        labels, count = np.array(self._labels, np.int64), np.array(self._count, np.int64)
        clips = np.repeat(np.arange(len(count)), count)
        often = np.bincount(labels) if len(labels) else np.zeros(0, np.int64)
        order = np.lexsort((labels, often[labels], clips))
        result = np.full(len(count), -1, np.int64)
        clip, at = np.unique(clips[order], return_index=True)
        result[clip] = labels[order][at]
        return result
