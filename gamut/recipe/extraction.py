"""What a recipe says of a cache of features must be such that one can be made."""

from __future__ import annotations

from gamut.recipe.schema import Recipe
from gamut.recipe.views import Problem

CLIPS = 128  # of a shard of the cache


def extraction_that_cannot_be(recipe: Recipe) -> list[Problem]:
    """What of the section `extract` contradicts itself or the rest."""
    extract = recipe.extract
    found: list[Problem] = []
    if CLIPS % extract.batch:
        near = min((size for size in range(1, CLIPS + 1) if not CLIPS % size), key=lambda n: abs(n - extract.batch))
        found.append((("extract.batch",), f"extract.batch must divide {CLIPS}, such as {near}, not {extract.batch}"))
    if extract.seconds < 0.1:
        found.append((("extract.seconds",), f"extract.seconds must be at least 0.1, not {extract.seconds:g}"))
    if sorted(set(extract.blocks)) != list(extract.blocks) or min(extract.blocks, default=0) < 0:
        found.append(
            (("extract.blocks",), f"extract.blocks are numbers of blocks from 0, ascending, not {extract.blocks}")
        )
    if recipe.mixture:
        found.append((("mixture",), "a cache is of one shard set: give each set of a mixture its own"))
    return found
