"""Which clips of a shard set a recipe asks for: by column, by label, by a list of keys, so many of each class, a share.

    subset: {fold: [1, 2], label: [dog, rain], keys: keys.txt, per_class: 10, share: 0.1, seed: 0}

Every entry narrows what the ones before it left, in this order: columns, labels, keys, then `per_class` or `share`,
which choose at random but always the same clips for one `seed`, whatever the seed of the run.

`"split?": [as-2m]` is what a recipe says of sets that it does not know: it holds where the set has a column `split`,
and gives way to a `split` that is said besides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import ShardError
from gamut.plan.few_shot import per_class
from gamut.randomness import Purpose, key
from gamut.shards.index import Index

SAMPLING = ("per_class", "share")  # a test set is never thinned out by these
RESERVED = ("label", "keys", "seed", *SAMPLING)  # not columns


def rows(index: Index, subset: Mapping[str, Any]) -> np.ndarray:
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
        raise ShardError(f"No clip of {index.folder} is in the subset {dict(subset)}.")
    return chosen


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
                f"The label {label} is class number {label}, but also the name of class number {ids[str(label)]} of "
                f"{index.folder}; write the name in quotes: ['{label}']."
            )
        numbers.append(number)
    hit = np.concatenate([[0], np.cumsum(np.isin(index.label, numbers))])
    return np.diff(hit[np.asarray(index.label_offset)]) > 0


def _with_key(index: Index, file: Path) -> np.ndarray:
    """bool [n]: clips whose key is a line of the file."""
    wanted = set(read_lines(file))
    if not wanted:
        raise ShardError(f"{file} names no key. Write one a line.")
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
        f"{file} names {len(missing)} keys that no clip in {index.folder} has, the first of them "
        f"{one!r}{nearest(one, like[:5000])}."
    )


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, blank ones left out. Raises ShardError where it cannot be read."""
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"The file {file} cannot be read: {error}.") from error


def nearest(word: str, names: Iterable[str]) -> str:
    """`; the nearest is NAME`, or nothing where none is near."""
    found = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; the nearest is {found[0]!r}" if found else ""


def _per_class(index: Index, chosen: np.ndarray, number: int, seed: int) -> np.ndarray:
    offset = np.asarray(index.label_offset)
    counts = np.diff(offset)[chosen]
    first = np.cumsum(counts) - counts
    at = np.repeat(offset[chosen] - first, counts) + np.arange(int(counts.sum()))
    if not len(at):
        raise ShardError(f"`per_class` needs labels, but no clip of {index.folder} that is chosen has any.")
    keys = key(seed, index.clip_id[chosen], 0, 3, Purpose.DRAW)
    few = per_class(np.concatenate([first, [len(at)]]), np.asarray(index.label)[at], keys, number)
    return chosen[few]
