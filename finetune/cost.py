"""What a classifier costs a clip, from the plan: tokens and floating-point operations."""

from __future__ import annotations

import numpy as np

from gamut.models.vit import PIXELS
from gamut.recipe import schema


def forward_flops(tokens: np.ndarray, model: schema.Model, classes: int) -> np.ndarray:
    """float64 [n]: operations (two a multiply-add) of the matrix products in one forward over clips of so many tokens,
    class tokens included: patches, blocks, attention (which grows with the square), pooling and classifier."""
    n = np.asarray(tokens, np.float64)
    dim, hidden = model.dim, int(model.dim * model.mlp_ratio)
    patches = n - (model.pooling == "cls") - model.distilled
    flops = 2.0 * PIXELS * dim * patches
    flops += model.depth * (2.0 * n * (4 * dim * dim + 2 * dim * hidden) + 4.0 * n * n * dim)
    if model.pooling == "attention":
        flops += 2.0 * n * 2 * dim * dim + 4.0 * n * dim + 2.0 * dim * dim  # keys and values, the query, its projection
    return flops + 2.0 * dim * classes
