"""Which clips of a shard set a recipe asks for, and how likely each is drawn. NumPy alone: importing it loads no torch.

    subset: {fold: [1, 2], label: [dog, rain], keys: keys.txt, per_class: 10, share: 0.1, seed: 0}

Every entry narrows what the ones before it left, in this order: columns, labels, keys, then `per_class` or `share`,
which choose at random but always the same clips for one `seed`, whatever the seed of the run.

`"split?": [as-2m]` is for recipes that are used with any set: it applies where the set has a column `split`, and gives
way to a `split` given as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from gamut.errors import ShardError, nearest
from gamut.plan import Catalogue, Clips, Policy, in_blocks
from gamut.randomness import Purpose, key
from gamut.shards.catalogue import Chosen, Indexed
from gamut.shards.index import Index
from gamut.text import read_lines

SAMPLING = ("per_class", "share")  # a test set is never thinned out by these
RESERVED = ("label", "keys", "seed", *SAMPLING)  # not columns
BALANCED = "balanced"
LINE = re.compile(r"\s*(.+?)\s*[,\s]\s*([^,\s]+)\s*")  # a key, which may hold blanks, and a number


@overload
def select(index: Index, subset: Mapping[str, Any], weights: str = "") -> Clips: ...
@overload
def select(index: Index, subset: Mapping[str, Any], weights: str, policy: Policy | None) -> Clips | Catalogue: ...
def select(
    index: Index, subset: Mapping[str, Any], weights: str = "", policy: Policy | None = None
) -> Clips | Catalogue:
    """The clips that the subset asks for, with weights where the recipe draws by weight (`plan.weights`): as a table,
    or where the policy plans so many clips in blocks, as a catalogue. Without a policy always as a table.

    Raises ShardError where there are none, and as `chosen_rows` and `clip_weights` do.
    """
    if policy is not None and in_blocks(len(index), policy):
        return _select_of_many(index, subset, weights, policy)
    clips = index.table()
    if subset or not len(clips):
        clips = clips.select(chosen_rows(index, subset))
    return _weighted(index, clips, weights)


def _weighted(index: Index, clips: Clips, weights: str) -> Clips:
    if not weights:
        return clips
    weight = clip_weights(index, clips.row, weights)
    # A clip that is never drawn is nobody's mixup partner either.
    return replace(clips, weight=weight).select(weight > 0)


def _select_of_many(index: Index, subset: Mapping[str, Any], weights: str, policy: Policy) -> Clips | Catalogue:
    """`select` from a large set. Few of its clips are a table all the same."""
    chosen = chosen_of_many(index, subset) if subset else None
    found = Indexed.of(index, chosen)
    if not in_blocks(len(found), policy):
        return _weighted(index, found.select(np.arange(len(found))), weights)
    if not weights:
        return found
    if weights != BALANCED:
        rows = found.rows(np.arange(len(found)))
        weight = clip_weights(index, rows, weights)
        return Indexed.of(index, Chosen.among(rows[weight > 0], len(index)), weight=weight[weight > 0])
    return _balanced(index, found)


def _balanced(index: Index, found: Indexed) -> Indexed:
    """Those that have a label, by their `balanced_weights`. Of a whole set the index has the sums; of a subset they are
    made in two passes."""
    there = np.zeros(len(index.labels), np.int64)
    ids = {name: number for number, name in enumerate(index.labels)}
    joined = [np.array([ids[name] for name in one.labels], np.int64) for one in index.sets]

    def labelled() -> Iterator[np.ndarray]:
        for stretch in found.stretches():
            one, own = index.sets[stretch.part], stretch.own
            offset = np.asarray(one.label_offset[own.start : own.stop + 1])
            counts = np.diff(offset)
            if found.chosen is not None:
                counts = counts * found.chosen.mask(stretch.first, stretch.last)
                label = one.label[offset[0] : offset[-1]][np.repeat(counts > 0, np.diff(offset))]
                there[:] += np.bincount(joined[stretch.part][label], minlength=len(there))
            yield counts > 0

    chosen = Chosen.of(labelled(), len(index))
    if not len(chosen):
        raise _without_labels(index, f"plan.weights: {BALANCED}")
    if found.chosen is not None:
        return Indexed.of(index, chosen, of_class(there))
    each = of_class(index.sums.label_totals(len(index.labels)))
    return Indexed.of(index, chosen, each, mass=index.sums.mass(each))


def chosen_of_many(index: Index, subset: Mapping[str, Any]) -> Chosen:
    """`chosen_rows` of a large set, some millions of rows at a time. With `keys` and `per_class` all of a set's keys,
    or labels, are looked up at once, in some 100 bytes a clip."""
    if "keys" in subset or "per_class" in subset:
        return Chosen.among(chosen_rows(index, subset), len(index))
    columns = _columns_of(subset)
    wanted = _label_numbers(index, as_list(subset["label"])) if "label" in subset else None
    names = {index.labels[number] for number in wanted or ()}

    def masks() -> Iterator[np.ndarray]:
        for stretch in Indexed.of(index).stretches():
            one, own = index.sets[stretch.part], stretch.own
            mask = one.holds(columns, own)
            if wanted is not None:
                numbers = [number for number, name in enumerate(one.labels) if name in names]
                offset = np.asarray(one.label_offset[own.start : own.stop + 1])
                mask &= _any_of(one.label[offset[0] : offset[-1]], offset - offset[0], numbers)
            yield mask

    chosen = Chosen.of(masks(), len(index))
    if "share" in subset and len(chosen):
        chosen = _share(index, chosen, subset["share"], int(subset.get("seed", 0)))
    if not len(chosen):
        raise _selects_none(index, subset)
    return chosen


def _share(index: Index, chosen: Chosen, share: float, seed: int) -> Chosen:
    """As many rows of the chosen ones as the share says, by the order of their hash: its upper half is counted first,
    then those are sorted where the count is reached."""
    every = Indexed.of(index, chosen)
    number = max(1, round(len(chosen) * share))

    def hashed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for stretch in every.stretches():
            mask = chosen.mask(stretch.first, stretch.last)
            yield mask, key(seed, every.columns[stretch.part]["clip_id"][stretch.own], 0, 2, Purpose.DRAW)

    counts = np.zeros(1 << 16, np.int64)
    for mask, keys in hashed():
        counts += np.bincount((keys[mask] >> np.uint64(48)).astype(np.int64), minlength=len(counts))
    ends = np.cumsum(counts)
    last = int(np.searchsorted(ends, number))
    among = np.concatenate([keys[mask & (keys >> np.uint64(48) == last)] for mask, keys in hashed()])
    limit = np.sort(among)[number - int(ends[last] - counts[last]) - 1]
    equal = number - int(ends[last] - counts[last]) - int((among < limit).sum())  # of equal keys the first rows go

    def masks() -> Iterator[np.ndarray]:
        nonlocal equal
        for mask, keys in hashed():
            ties = mask & (keys == limit)
            ties &= np.cumsum(ties) <= equal
            equal -= int(ties.sum())
            yield (mask & (keys < limit)) | ties

    return Chosen.of(masks(), len(index))


def chosen_rows(index: Index, subset: Mapping[str, Any]) -> np.ndarray:
    """int64 [k], ascending: rows of the index that are in the subset; all for an empty one.

    Raises ShardError where there is none, and for a column, value, label or key that the set does not have, naming the
    nearest that it has.
    """
    seed = int(subset.get("seed", 0))
    chosen = index.where(_columns_of(subset))
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
        raise _selects_none(index, subset)
    return chosen


def _columns_of(subset: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The entries that are columns of the set, with their values."""
    return {
        name: as_list(value)
        for name, value in subset.items()
        if name not in RESERVED and (not name.endswith("?") or name[:-1] not in subset)
    }


def _selects_none(index: Index, subset: Mapping[str, Any]) -> ShardError:
    there = [f"{name} is {_some(index, name)}" for name in _columns_of(subset) if name in index.columns]
    return ShardError(
        f"The subset {dict(subset)} selects no clip of {index.folder}{', where ' * bool(there)}{'; '.join(there)}."
    )


def _some(index: Index, column: str) -> str:
    """The names of a column's values, or else the values, the first ten."""
    names = list(index.names.get(column, {})) or [str(value) for value in np.unique(index.columns[column])[:11]]
    return ", ".join(names[:10]) + ", ..." * (len(names) > 10)


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
    return _any_of(index.label, index.label_offset, _label_numbers(index, wanted))


def _any_of(label: np.ndarray, offset: np.ndarray, numbers: list[int]) -> np.ndarray:
    """bool [n]: which stretches of the labels, as `offset` [n + 1] says, have any of these numbers."""
    hit = np.concatenate([[0], np.cumsum(np.isin(label, numbers))])
    return np.diff(hit[np.asarray(offset)]) > 0


def _label_numbers(index: Index, wanted: Iterable[int | str]) -> list[int]:
    """Class ids of labels, each a class id or a name of the class table."""
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
    return numbers


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
        raise _without_labels(index, why)
    return counts, np.asarray(index.label)[at]


def _without_labels(index: Index, why: str) -> ShardError:
    return ShardError(f"`{why}` needs labels, but none of the selected clips of {index.folder} has any.")


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
    weight = of_class(np.bincount(label, minlength=len(index.labels)))
    return np.bincount(np.repeat(np.arange(len(rows)), counts), weights=weight[label], minlength=len(rows))


def of_class(counts: np.ndarray) -> np.ndarray:
    """float64 [classes]: what a label adds to its clip's weight, where so many clips have it."""
    return 1000.0 / (counts + 0.01)


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
