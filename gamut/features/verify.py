"""Is every byte of a cache still what was written? Every damage is named."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gamut.errors import FeatureError
from gamut.features.cache import FeatureCache
from gamut.features.shard import read_header, shard_name
from gamut.shards.progress import Progress


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    shard: int
    what: str  # names the file, and the clip where it is one


def verify(cache: FeatureCache) -> list[Damage]:
    """Read every shard's header and every record against its checksum, in order. Opening the cache has checked its
    index."""
    damages: list[Damage] = []
    about = cache.about
    with Progress("verifying", about.clips) as progress:
        for number in range(about.shards):
            clips = np.array(about.clips_of(number))
            damages += _check(cache, number, clips)
            progress.add(len(clips))
    return damages


def _check(cache: FeatureCache, number: int, places: np.ndarray) -> list[Damage]:
    path = cache.folder / shard_name(number)
    try:
        header = read_header(path, cache.about, number)
    except FeatureError as error:
        return [Damage(number, str(error))]
    except OSError as error:
        return [Damage(number, f"{path} cannot be read ({error.strerror or error}).")]
    if not np.array_equal(header.clip_id, cache.clip_id[places[cache.has(cache.rows[places])]]):
        return [Damage(number, f"{path} holds other clips than the index says.")]
    found = []
    for place in places[cache.has(cache.rows[places])]:
        try:
            cache.read(cache.rows[[place]])
        except FeatureError as error:
            found.append(Damage(number, str(error)))
    return found
