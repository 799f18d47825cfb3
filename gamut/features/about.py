"""What a cache is: of which encoder, front end and pooling, of which clips, in which numbers. Its address."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import xxhash

from gamut.features.precision import STORED, stored_steps
from gamut.numbers import CLIPS_A_SHARD

FORMAT = 1
LARGEST = 1 << 40  # bytes of a record, clips


@dataclass(frozen=True)
class About:
    """Everything here but `name` decides the features or where they lie, and so the fingerprint.

    `model`, `front` and `pooling` are plain values that JSON can hold, as the encoder describes itself.
    """

    name: str
    model: Mapping[str, Any]
    front: Mapping[str, Any]
    pooling: Mapping[str, Any]
    blocks: tuple[int, ...]  # which blocks' outputs, from 0
    steps: int
    dim: int
    dtype: str  # fp16 | fp32 | int8
    index: str  # fingerprint of the shard set
    chosen: str  # of the rows of the index that are in the cache, in order
    clips: int
    per_shard: int = CLIPS_A_SHARD
    format: int = field(default=FORMAT)

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @functools.cached_property
    def stored(self) -> tuple[int, int, int]:
        """Shape of a stored record."""
        return self.layers, stored_steps(self.dtype, self.steps), self.dim

    @functools.cached_property
    def record_bytes(self) -> int:
        return math.prod(self.stored) * STORED[self.dtype].itemsize

    @property
    def shards(self) -> int:
        return -(-self.clips // self.per_shard)

    def clips_of(self, shard: int) -> range:
        """The places of a shard's clips in the cache's order."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.clips))

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits."""
        decides = {name: value for name, value in self.content().items() if name != "name"}
        return xxhash.xxh3_128_hexdigest(json.dumps(decides, sort_keys=True).encode())

    def seed(self, clip_id: int) -> int:
        """What a record's checksum starts from: it holds for this clip of this cache only."""
        return clip_id ^ self._seed

    @functools.cached_property
    def _seed(self) -> int:
        return int(self.fingerprint[:16], 16)

    def content(self) -> dict[str, Any]:
        """As JSON holds it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> About:
        """From what `content` gave. Raises KeyError, TypeError or ValueError where it is something else."""
        values = {f.name: content[f.name] for f in fields(cls)}
        made = cls(**values | {"blocks": tuple(content["blocks"])})
        for name in ("steps", "dim", "per_shard", "clips"):
            if type(values[name]) is not int or not (name != "clips") <= values[name] <= LARGEST:
                raise ValueError(f"{name} is {values[name]!r}")
        if not made.blocks or not 0 < made.record_bytes <= LARGEST:
            raise ValueError(f"a record has {made.record_bytes} bytes")
        return made


def chosen(rows: np.ndarray) -> str:
    """16 hexadecimal digits of rows of an index."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(rows, "<i8").tobytes())
