"""A cache of features that somebody has as an array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash

from gamut.data.batch import Hole
from gamut.features.about import About, chosen
from gamut.features.cache import FeatureCache
from gamut.features.store import Store
from gamut.numbers import CLIPS_A_SHARD


def write_cache(
    folder: str | Path,
    x: np.ndarray,
    clip_id: np.ndarray | None = None,
    *,
    rows: np.ndarray | None = None,
    keys: Sequence[str] | None = None,
    index: str = "",
    dtype: str = "fp16",
    holes: Sequence[Hole] = (),
    name: str = "arrays",
    per_shard: int = CLIPS_A_SHARD,
) -> FeatureCache:
    """A whole cache, in `folder` itself, from x float [n, layers, steps, dim]: one record a clip.

    rows int64 [n + holes], ascending: the clips' rows in the shard set's index, by default 0, 1, ...; clip_id uint64
    and keys: theirs, by default made of the rows. Clips named in `holes` (by row) have no features: x has those of
    the others. index: fingerprint of the shard set.

    >>> write_cache("features/toy", numpy.random.rand(10, 4, 25, 384)).read([3]).shape      # doctest: +SKIP
    (1, 4, 25, 384)
    """
    x = np.asarray(x, np.float32)
    rows = np.arange(len(x) + len(holes)) if rows is None else np.asarray(rows, np.int64)
    ids = np.array([xxhash.xxh3_64_intdigest(str(row).encode()) for row in rows.tolist()], np.uint64)
    ids = ids if clip_id is None else np.asarray(clip_id, np.uint64)
    about = About(
        name=name,
        model={"kind": "arrays", "weights": xxhash.xxh3_64_hexdigest(x.tobytes())},
        front={},
        pooling={},
        blocks=tuple(range(x.shape[1])),
        steps=x.shape[2],
        dim=x.shape[3],
        dtype=dtype,
        index=index,
        chosen=chosen(rows),
        clips=len(rows),
        per_shard=per_shard,
    )
    made = Store.begin(Path(folder), about, ids, rows, keys or [f"clip{row}" for row in rows.tolist()])
    left_out = {hole.row: hole for hole in holes}
    present = np.array([row not in left_out for row in rows.tolist()], bool)
    record = np.cumsum(present) - 1
    for number in range(about.shards):
        with made.claim(number, wait=True) as mine:
            if mine:
                places = np.array(about.clips_of(number))
                kept = places[present[places]]
                gone = [left_out[int(row)] for row in rows[places] if int(row) in left_out]
                records = made.records(number)
                records.add(ids[kept], torch.from_numpy(x[record[kept]]))
                made.put(records, gone)
    return made.seal()
