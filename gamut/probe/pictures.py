"""Where a backbone looks: the attention of the query that becomes a clip's vector, over time and frequency."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from gamut.audio.logmel import unpatch
from gamut.data.assemble import assemble
from gamut.models.layout import Layout
from gamut.models.vit import VisionTransformer
from gamut.numbers import RATE
from gamut.plan import Clips
from gamut.probe.features import Encoder, whole_clips
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.track import figures
from gamut.train.objective import evaluating

if TYPE_CHECKING:  # whoever draws nothing need not wait for it
    from matplotlib.figure import Figure


@torch.no_grad()
def attention_figures(encode: Encoder, index: Index, clips: Clips, recipe: Recipe, when: str) -> Iterator[Figure]:
    """A figure a clip, each at its native length: its log-mel, and the attention of every head of the last block; none
    of a backbone that is no vision transformer.

    Where the backbone's weights are spread over ranks, all of them call it.
    """
    if not isinstance(encode.backbone, VisionTransformer):
        return
    plan = whole_clips(clips, recipe)
    batch = assemble(index, plan, range(plan.steps * plan.packs)).to(encode.device)
    pixels = encode.front(batch)
    where = encode.backbone.layout(batch.frames, batch.sizes)
    with evaluating(encode.backbone, encode.precision, encode.device):
        maps = attention_maps(encode.backbone, pixels, where)
    mels = unpatch(pixels).cpu().numpy()
    first = 0
    for clip, frames in enumerate(batch.sizes):
        title = f"{index.key(int(batch.row[clip]))}, attention {when}"
        seconds = float(batch.hop[clip]) / RATE
        yield figures.attention(mels[first : first + frames], maps[clip].float().numpy(), title, seconds)
        first += frames


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
