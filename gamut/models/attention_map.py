"""Where a backbone looks: the attention of the query that becomes a clip's vector, over time and frequency."""

from __future__ import annotations

import math

import torch

from gamut.models.layout import Layout
from gamut.models.vit import VisionTransformer


@torch.no_grad()
def attention_maps(vit: VisionTransformer, patches: torch.Tensor, where: Layout, block: int = -1) -> list[torch.Tensor]:
    """Of each segment the shares of attention on its patches, float32 [heads, columns, bands] on the CPU.

    With class tokens they are the class token's in a block (the last one by default), or the mean of its and the
    distillation token's; with attention pooling those of its learned query; with mean pooling, which has no query, the
    mean over all tokens' in the block. What a query gives to class tokens themselves is left out, so shares may sum to
    less than 1. patches [N, 256] and layout as for the model, whose mode is taken as it is.
    """
    pooled = vit.model.pooling == "attention"
    seen: list[torch.Tensor] = []  # what the modules give in their own forward, when their weights are whole
    names = ["attn_pool.to_q", "attn_pool.to_kv"] if pooled else [f"blocks.{range(len(vit.blocks))[block]}.attn.qkv"]
    handles = [
        vit.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(output.float()))
        for name in names
    ]
    try:
        tokens = vit(patches, where)
        if pooled:
            vit.pool(tokens, where)
    finally:
        for handle in handles:
            handle.remove()
    part = seen[-1].unflatten(-1, (2 if pooled else 3, vit.model.pooling_heads if pooled else vit.model.heads, -1))
    keys = part[:, 0 if pooled else 1]  # [T, heads, d]
    scale = 1.0 / math.sqrt(keys.shape[-1]) if vit.model.attention_scale is None else vit.model.attention_scale
    maps, first = [], 0
    for length, columns in zip(where.lengths, where.widths):
        own = slice(first, first + length)
        if pooled:
            query = seen[0].unflatten(-1, (vit.model.pooling_heads, -1))
        else:
            query = part[first : first + (where.special or length), 0]
        shares = torch.softmax(torch.einsum("qhd,khd->hqk", query, keys[own]) * scale, dim=-1).mean(1)
        maps.append(shares[:, where.special :].unflatten(-1, (columns, where.bands)).cpu())
        first += length
    return maps
