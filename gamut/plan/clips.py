"""What a plan knows about the data: five columns, and two more where clips are weighted or of several sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from gamut.errors import PlanError

TYPES = {"row": np.int64, "clip_id": np.uint64, "shard": np.int32, "samples": np.int64, "size": np.int64}
OPTIONAL = {"weight": np.float64, "source": np.int32}


@dataclass(frozen=True, eq=False)
class Clips:
    """One row a clip, in index order. The columns may be memory maps; a column of another type is converted.

    Raises PlanError where columns differ in length, or where clips cannot be drawn by these weights.
    """

    row: np.ndarray  # int64 [n], row in the index (after a subset still that of the whole index)
    clip_id: np.ndarray  # uint64 [n]
    shard: np.ndarray  # int32 [n]
    samples: np.ndarray  # int64 [n], at 16 kHz
    size: np.ndarray  # int64 [n], bytes of the member
    weight: np.ndarray | None = None  # float64 [n]: drawn with replacement, by these; None: in permutations
    source: np.ndarray | None = None  # int32 [n], which set of a mixture; None: there is one set

    def __post_init__(self) -> None:
        for name, dtype in self.types().items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        lengths = {name: len(getattr(self, name)) for name in self.types()}
        if len(set(lengths.values())) > 1:
            raise PlanError(f"The columns of a table of clips differ in length: {lengths}. Index the shards again.")
        if self.weight is not None:
            self._check_weights(self.weight)

    def _check_weights(self, weight: np.ndarray) -> None:
        if not np.isfinite(weight).all() or (len(weight) and weight.min() < 0):
            at = int(np.argmax(~np.isfinite(weight) | (weight < 0)))
            raise PlanError(
                f"The clip in row {self.row[at]} of the index has the weight {weight[at]}; it must be 0 or more."
            )
        source = np.zeros(len(self), np.int32) if self.source is None else self.source
        for number, total in enumerate(np.bincount(source, weights=weight)):
            if total <= 0 and (source == number).any():
                which = "" if self.source is None else f" of set number {number} of the mixture"
                raise PlanError(
                    f"No clip{which} has a weight above 0, so none can be drawn. Give some in `plan.weights`."
                )

    def types(self) -> dict[str, type]:
        """Name and type of each column that is there."""
        return TYPES | {name: dtype for name, dtype in OPTIONAL.items() if getattr(self, name) is not None}

    def __len__(self) -> int:
        return len(self.row)

    def select(self, which: np.ndarray) -> Clips:
        """The clips at these places of the table, in the order given.

        `which` is a bool mask [n], or places int [k] (for a whole index's table a place is a row of the index).
        Raises PlanError where a place is outside the table.
        """
        which = np.asarray(which)
        if which.dtype == bool:
            if len(which) != len(self):
                raise PlanError(f"A mask of {len(which)} clips does not fit a table of {len(self)}.")
        else:
            which = which.astype(np.int64)
            if len(which) and not 0 <= which.min() <= which.max() < len(self):
                raise PlanError(
                    f"Clips {which.min()} to {which.max()} are requested, but the table has rows 0 to {len(self) - 1}."
                )
        return Clips(**{name: getattr(self, name)[which] for name in self.types()})

    def lengths(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [k] each: row in the index, and samples, of the clips at these places."""
        return self.row[places], self.samples[places]

    def fingerprint(self) -> str:
        """16 hexadecimal digits of everything that a plan reads about the clips, except weights: rows, ids, shards,
        lengths and sets, in order.

        The sizes of members are left out: writing the same samples again does not change a plan.
        """
        return self._hash("row", "clip_id", "shard", "samples", *(["source"] if self.source is not None else []))

    def weights_fingerprint(self) -> str:
        """16 hexadecimal digits of the weights."""
        return self._hash("weight")

    def _hash(self, *names: str) -> str:
        hashed = hashlib.sha256(str(len(self)).encode())
        for name in names:
            column = getattr(self, name)
            hashed.update(np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<")).data)
        return hashed.hexdigest()[:16]
