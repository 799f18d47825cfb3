"""What a plan knows of the data: five columns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from gamut.errors import PlanError

TYPES = {"row": np.int64, "clip_id": np.uint64, "shard": np.int32, "samples": np.int64, "size": np.int64}


@dataclass(frozen=True, eq=False)
class Clips:
    """One row a clip, in index order. The columns may be memory maps; a column of another type is converted."""

    row: np.ndarray  # int64 [n], row in the index (after a subset still that of the whole index)
    clip_id: np.ndarray  # uint64 [n]
    shard: np.ndarray  # int32 [n]
    samples: np.ndarray  # int64 [n], at 16 kHz
    size: np.ndarray  # int64 [n], bytes of the member

    def __post_init__(self) -> None:
        for name, dtype in TYPES.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        lengths = {name: len(getattr(self, name)) for name in TYPES}
        if len(set(lengths.values())) > 1:
            raise PlanError(f"The columns of a table of clips differ in length: {lengths}. Index the shards again.")

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
                raise PlanError(f"A mask of {len(which)} clips cannot choose from a table of {len(self)}.")
        else:
            which = which.astype(np.int64)
            if len(which) and not 0 <= which.min() <= which.max() < len(self):
                raise PlanError(
                    f"Clips {which.min()} to {which.max()} are asked for, but the table has rows 0 to {len(self) - 1}."
                )
        return Clips(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def fingerprint(self) -> str:
        """16 hexadecimal digits of all that a plan reads of the clips: rows, ids, shards and lengths, in order.

        The bytes a member takes are left out: writing the same samples anew does not change a plan.
        """
        hashed = hashlib.sha256(str(len(self)).encode())
        for name in ("row", "clip_id", "shard", "samples"):
            column = getattr(self, name)
            hashed.update(np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<")).data)
        return hashed.hexdigest()[:16]
