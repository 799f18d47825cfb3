"""How likely each clip is to be drawn: balanced over its labels, or as a file says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from gamut.errors import ShardError
from gamut.shards.index import Index
from gamut.shards.subset import read_lines, unknown_key

BALANCED = "balanced"
LINE = re.compile(r"\s*(.+?)\s*[,\s]\s*([^,\s]+)\s*")  # a key, which may hold blanks, and a number


def clip_weights(index: Index, rows: np.ndarray, weights: str) -> np.ndarray:
    """float64 [k]: weights of these rows, `balanced` or from the file of that name.

    A file has a key and a number of 0 or more on each line, parted by a comma, a tab or blanks. Raises ShardError where
    clips have no labels to balance, and where the file cannot be read, or lacks a clip, or names one that is not there.
    """
    return balanced_weights(index, rows) if weights == BALANCED else _from_file(index, rows, Path(weights))


def balanced_weights(index: Index, rows: np.ndarray) -> np.ndarray:
    """float64 [k]: the sum over a clip's labels of 1000 / (count + 0.01), counted over these rows (AST, balanced
    sampling). A clip without a label has weight 0: it is never drawn."""
    counts = np.diff(index.label_offset)[rows]
    first = np.cumsum(counts) - counts
    at = np.repeat(np.asarray(index.label_offset)[rows] - first, counts) + np.arange(int(counts.sum()))
    if not len(at):
        raise ShardError(
            f"`plan.weights: {BALANCED}` needs labels, but no clip of {index.folder} that is chosen has any."
        )
    label = np.asarray(index.label)[at]
    of_class = 1000.0 / (np.bincount(label, minlength=len(index.labels)) + 0.01)
    return np.bincount(np.repeat(np.arange(len(rows)), counts), weights=of_class[label], minlength=len(rows))


def _from_file(index: Index, rows: np.ndarray, file: Path) -> np.ndarray:
    weights: dict[str, float] = {}
    for number, line in enumerate(read_lines(file), 1):
        try:
            key, weight = LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            weights[key] = float(weight)
        except (AttributeError, ValueError):
            raise ShardError(f"Line {number} of {file} is not a key and a number: {line!r}.") from None
    keys = index.keys()
    unknown = weights.keys() - set(keys)
    if unknown:
        raise unknown_key(index, file, set(unknown), keys)
    lacking = [row for row in rows.tolist() if keys[row] not in weights]
    if lacking:
        raise ShardError(
            f"{file} has no weight for {len(lacking)} of {len(rows)} clips, the first of them {keys[lacking[0]]!r}. "
            "Give each a line; a weight of 0 leaves a clip out."
        )
    return np.array([weights[keys[row]] for row in rows.tolist()], np.float64)
