"""What a clip's KEY.json holds as `text`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from gamut.errors import ShardError
from gamut.shards.index import Index
from gamut.shards.tar import members

LARGEST = 1 << 20  # bytes of a KEY.json


def texts(index: Index, rows: Sequence[int] | np.ndarray) -> list[str]:
    """The transcripts of clips by rows of the index; "" for one without.

    Each tar that has one of them is walked through once. Raises ShardError where a tar cannot be read or is damaged.
    """
    wanted: dict[tuple[int, str], list[int]] = {}
    for place, row in enumerate(np.asarray(rows, np.int64).tolist()):
        wanted.setdefault((int(index.shard[row]), index.key(row)), []).append(place)
    found = [""] * len(rows)
    for shard in sorted({shard for shard, _ in wanted}):
        name = index.shards[shard]["name"]
        path = index.tars.full(name)
        with index.tars.open(name) as file:
            for member in members(file, path):
                places = wanted.get((shard, member.name.removesuffix(".json")))
                if places is None or not member.name.endswith(".json") or member.size > LARGEST:
                    continue
                file.seek(member.offset)
                try:
                    text = json.loads(file.read(member.size)).get("text")
                except (ValueError, AttributeError) as error:
                    raise ShardError(f"{member.name} in {path} is damaged ({error}).") from error
                for place in places:
                    found[place] = text if isinstance(text, str) else ""
    return found
