"""Models by name, with sizes that stay what they are."""

from __future__ import annotations

import dataclasses
from typing import Any

from gamut.errors import RecipeError
from gamut.models.vit import VisionTransformer
from gamut.recipe import schema

SIZES = {
    "tiny": schema.Model(dim=192, depth=6, heads=3),
    "s": schema.Model(dim=384, depth=12, heads=6),  # ViT-S, 22 M parameters
    "b": schema.Model(dim=768, depth=12, heads=12),  # ViT-B, 85 M
}


def sized(size: str, **options: Any) -> schema.Model:
    """The model section of a size, with other fields as given. Raises RecipeError naming the sizes there are."""
    if size not in SIZES:
        raise RecipeError(f"There is no model size {size!r}; there are {', '.join(SIZES)}.")
    return dataclasses.replace(SIZES[size], **options)


def build(model: schema.Model, seed: int = 0) -> VisionTransformer:
    """The backbone that a model section describes, on the CPU, its weights drawn from `seed`."""
    return VisionTransformer(model, seed=seed)
