"""Which clips of a shard set a recipe asks for, and how likely each is drawn. NumPy alone: importing it loads no torch.

    subset: {fold: [1, 2], label: [dog, rain], keys: keys.txt, per_class: 10, share: 0.1, seed: 0}

Every entry narrows what the ones before it left, in this order: columns, labels, keys, then `per_class` or `share`,
which choose at random but always the same clips for one `seed`, whatever the seed of the run.

`"split?": [as-2m]` is for recipes that are used with any set: it applies where the set has a column `split`, and gives
way to a `split` given as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import ShardError, nearest
from gamut.plan import Clips
from gamut.randomness import Purpose, key
from gamut.shards.index import Index
from gamut.text import read_lines

SAMPLING = ("per_class", "share")  # a test set is never thinned out by these
RESERVED = ("label", "keys", "seed", *SAMPLING)  # not columns
BALANCED = "balanced"
LINE = re.compile(r"\s*(.+?)\s*[,\s]\s*([^,\s]+)\s*")  # a key, which may hold blanks, and a number


def select(index: Index, subset: Mapping[str, Any], weights: str = "") -> Clips:
    """The clips that the subset asks for, with weights where the recipe draws by weight (`plan.weights`).

    Raises ShardError where there are none, and as `chosen_rows` and `clip_weights` do.
    """
    clips = index.table()
    if subset or not len(clips):
        clips = clips.select(chosen_rows(index, subset))
    if not weights:
        return clips
    weight = clip_weights(index, clips.row, weights)
    # A clip that is never drawn is nobody's mixup partner either.
    return replace(clips, weight=weight).select(weight > 0)


def chosen_rows(index: Index, subset: Mapping[str, Any]) -> np.ndarray:
    """int64 [k], ascending: rows of the index that are in the subset; all for an empty one.

    Raises ShardError where there is none, and for a column, value, label or key that the set does not have, naming the
    nearest that it has.
    """
    seed = int(subset.get("seed", 0))
    columns = {
        name: as_list(value)
        for name, value in subset.items()
        if name not in RESERVED and (not name.endswith("?") or name[:-1] not in subset)
    }
    chosen = index.where(columns)
    if "label" in subset:
        chosen = chosen[_with_label(index, as_list(subset["label"]))[chosen]]
    if "keys" in subset:
        chosen = chosen[_with_key(index, Path(subset["keys"]))[chosen]]
    if "per_class" in subset:
        chosen = _per_class(index, chosen, int(subset["per_class"]), seed)
    elif "share" in subset:
        order = np.argsort(key(seed, index.clip_id[chosen], 0, 2, Purpose.DRAW), kind="stable")
        chosen = np.sort(chosen[order[: max(1, round(len(chosen) * subset["share"]))]])
    if not len(chosen):
        raise ShardError(f"The subset {dict(subset)} selects no clip of {index.folder}.")
    return chosen


def sample(index: Index, rows: np.ndarray, most: int) -> np.ndarray:
    """int64 [k]: at most `most` of these rows, always the same ones, in the order of their hash."""
    order = np.argsort(key(0, np.asarray(index.clip_id)[rows], Purpose.SAMPLE), kind="stable")
    return rows[order[:most]]


def for_scoring(subset: Mapping[str, Any]) -> dict[str, Any]:
    """The subset without the entries that only thin out what is trained on."""
    return {name: value for name, value in subset.items() if name not in SAMPLING}


def as_list(value: Any) -> list[Any]:
    """One value is a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _with_label(index: Index, wanted: Iterable[int | str]) -> np.ndarray:
    """bool [n]: clips with any of these labels, each a class id or a name of the class table."""
    ids = {name: number for number, name in enumerate(index.labels)}
    numbers = []
    for label in wanted:
        number = ids.get(label) if isinstance(label, str) else label
        if number is None or not 0 <= number < len(index.labels):
            raise ShardError(
                f"The shards in {index.folder} have no label {label!r}"
                + (nearest(str(label), index.labels) or f"; there are {len(index.labels)} classes")
                + "."
            )
        if not isinstance(label, str) and ids.get(str(label), label) != label:
            raise ShardError(
                f"The label {label} is both class number {label} and the name of class number {ids[str(label)]} in "
                f"{index.folder}; if the name is meant, write it in quotes: ['{label}']."
            )
        numbers.append(number)
    hit = np.concatenate([[0], np.cumsum(np.isin(index.label, numbers))])
    return np.diff(hit[np.asarray(index.label_offset)]) > 0


def _with_key(index: Index, file: Path) -> np.ndarray:
    """bool [n]: clips whose key is a line of the file."""
    wanted = set(read_lines(file, ShardError)) - {""}
    if not wanted:
        raise ShardError(f"{file} holds no keys. Write one a line.")
    keys = index.keys()
    chosen = np.array([one in wanted for one in keys], bool)
    missing = wanted.difference(keys) if chosen.sum() < len(wanted) else set()
    if missing:
        raise unknown_key(index, file, missing, keys)
    return chosen


def unknown_key(index: Index, file: Path, missing: set[str], keys: list[str]) -> ShardError:
    """The error for keys in a file that no clip of the set has."""
    one = min(missing)
    like = [other for other in keys if other[:3] == one[:3]] or keys  # difflib over millions would take minutes
    return ShardError(
        f"{file} names {len(missing)} keys that are not in {index.folder}, the first of them "
        f"{one!r}{nearest(one, like[:5000])}."
    )


def _per_class(index: Index, chosen: np.ndarray, number: int, seed: int) -> np.ndarray:
    counts, label = _labels_of(index, chosen, "per_class")
    keys = key(seed, index.clip_id[chosen], 0, 3, Purpose.DRAW)
    few = per_class(np.concatenate([[0], np.cumsum(counts)]), label, keys, number)
    return chosen[few]


def _labels_of(index: Index, rows: np.ndarray, why: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 [k], the number of labels of each row, and int32 [labels], their class ids one row after the other."""
    offset = np.asarray(index.label_offset)
    counts = np.diff(offset)[rows]
    first = np.cumsum(counts) - counts
    at = np.repeat(offset[rows] - first, counts) + np.arange(int(counts.sum()))
    if not len(at):
        raise ShardError(f"`{why}` needs labels, but none of the selected clips of {index.folder} has any.")
    return counts, np.asarray(index.label)[at]


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


def clip_weights(index: Index, rows: np.ndarray, weights: str) -> np.ndarray:
    """float64 [k]: weights of these rows, `balanced` or from the file of that name.

    Each line of a file holds a key and a number of at least 0, separated by a comma, a tab or blanks. Raises ShardError
    where clips have no labels to balance, and where the file cannot be read, or lacks a clip, or names one that is not
    there.
    """
    return balanced_weights(index, rows) if weights == BALANCED else _from_file(index, rows, Path(weights))


def balanced_weights(index: Index, rows: np.ndarray) -> np.ndarray:
    """float64 [k]: the sum over a clip's labels of 1000 / (count + 0.01), counted over these rows (AST, balanced
    sampling). A clip without a label has weight 0: it is never drawn."""
    counts, label = _labels_of(index, rows, f"plan.weights: {BALANCED}")
    of_class = 1000.0 / (np.bincount(label, minlength=len(index.labels)) + 0.01)
    return np.bincount(np.repeat(np.arange(len(rows)), counts), weights=of_class[label], minlength=len(rows))


def _from_file(index: Index, rows: np.ndarray, file: Path) -> np.ndarray:
    weights: dict[str, float] = {}
    for number, line in enumerate(read_lines(file, ShardError), 1):
        if not line:
            continue
        try:
            key, weight = LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            weights[key] = float(weight)
        except (AttributeError, ValueError):
            raise ShardError(f"Line {number} of {file} must hold a key and a number, not {line!r}.") from None
    keys = index.keys()
    unknown = weights.keys() - set(keys)
    if unknown:
        raise unknown_key(index, file, set(unknown), keys)
    lacking = [row for row in rows.tolist() if keys[row] not in weights]
    if lacking:
        raise ShardError(
            f"{file} has no weight for {len(lacking)} of {len(rows)} clips, the first of them {keys[lacking[0]]!r}. "
            "Give each clip a line; a weight of 0 leaves it out."
        )
    return np.array([weights[keys[row]] for row in rows.tolist()], np.float64)
