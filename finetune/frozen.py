"""The features of a frozen encoder that a recipe names: opened, and looked through before anything is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gamut.data.loader import Loader
from gamut.errors import FeatureError
from gamut.features import FeatureCache
from gamut.plan import Clips
from gamut.recipe import schema
from gamut.shards import Index


def open_features(recipe: schema.Recipe, index: Index) -> FeatureCache | None:
    """The cache that the recipe names, or None where it names none.

    Raises FeatureError where there is no finished cache, or it is of another shard set than the recipe's data.
    """
    if not recipe.features:
        return None
    cache = FeatureCache(recipe.features)
    cache.check_index(index.fingerprint)
    return cache


def require_features(cache: FeatureCache | None, index: Index, clips: Clips | None, *, scored: bool = False) -> None:
    """Raises FeatureError where the cache was not made of all these clips, or, of clips that are `scored`, one was
    unusable then: such a hole is counted in training, and a score does not allow it."""
    if cache is None or clips is None:
        return
    rows = np.asarray(clips.row)
    absent = rows[~np.isin(rows, cache.rows)]
    if len(absent):
        raise FeatureError(
            f"The cache {cache.folder} lacks {len(absent)} of {len(rows)} clips of this round, such as "
            f"{index.key(int(absent[0]))}: extract features of the whole set, or name the subset that it was made of."
        )
    holes = rows[~cache.has(rows)] if scored else rows[:0]
    if len(holes):
        raise FeatureError(
            f"The cache {cache.folder} has no features of {len(holes)} of {len(rows)} clips to be scored, such as "
            f"{index.key(int(holes[0]))}: they were unusable when they were to be encoded. Mend the shard set and "
            "extract with --mend, or leave these clips out of the set."
        )


def loader_of(cache: FeatureCache | None) -> Callable[..., Iterable[Any]]:
    """What makes the loaders of a run: of features where there is a cache, of sound otherwise."""
    return Loader if cache is None else functools.partial(Loader, features=cache)


def described(cache: FeatureCache) -> dict[str, Any]:
    """What a head must know of the encoder that it was trained on, as JSON holds it."""
    info = cache.info
    return {
        "name": info.name,
        "model": info.model,
        "front": info.front,
        "pooling": info.pooling,
        "blocks": list(info.blocks),
        "fingerprint": info.fingerprint,
    }
