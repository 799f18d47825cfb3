"""Attention maps against a plain computation of the last block's attention."""

from __future__ import annotations

import pytest
import torch

from gamut.models.layout import layout
from gamut.models.vit import VisionTransformer
from gamut.probe.pictures import attention_maps
from gamut.recipe import schema
from tests.close import assert_close

SIZES = (32, 64, 16)


def model(pooling: str) -> VisionTransformer:
    options = schema.Model(dim=24, depth=2, heads=3, pooling_heads=2, table_frames=64, pooling=pooling)
    return VisionTransformer(options, seed=1).eval()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("block", [0, -1])
@torch.no_grad()
def test_maps_are_the_softmax_of_query_and_keys(pooling: str, block: int) -> None:
    vit = model(pooling)
    torch.nn.init.normal_(vit.blocks[block].attn.qkv.weight, generator=torch.Generator().manual_seed(2))
    pixels = torch.randn(sum(SIZES) // 2, 256, generator=torch.Generator().manual_seed(3))
    where = layout(torch.tensor(SIZES), SIZES, class_token=pooling == "cls")
    maps = attention_maps(vit, pixels, where, block)
    assert [part.shape for part in maps] == [(3, 2, 8), (3, 4, 8), (3, 1, 8)]
    before = vit._embed(pixels, where)
    for other in vit.blocks[: block % 2]:
        before = other(before, where, None)
    attn = vit.blocks[block].attn
    q, k, _ = attn.qkv(vit.blocks[block].norm1(before)).unflatten(-1, (3, 3, 8)).unbind(1)
    for segment, found in enumerate(maps):
        own = where.segment == segment
        for head in range(3):
            shares = torch.softmax(q[own, head] @ k[own, head].T / 8**0.5, -1)
            expected = shares[0, 1:] if pooling == "cls" else shares.mean(0)
            assert_close(found[head].flatten(), expected, 1e-5)  # time-major


@torch.no_grad()
def test_maps_of_attention_pooling_are_of_its_learned_query() -> None:
    vit = model("attention")
    torch.nn.init.normal_(vit.attn_pool.query, generator=torch.Generator().manual_seed(2))
    torch.nn.init.normal_(vit.attn_pool.to_kv.weight, generator=torch.Generator().manual_seed(4))
    pixels = torch.randn(sum(SIZES) // 2, 256, generator=torch.Generator().manual_seed(3))
    where = layout(torch.tensor(SIZES), SIZES, class_token=False)
    maps = attention_maps(vit, pixels, where)
    tokens = vit(pixels, where)
    q = vit.attn_pool.to_q(vit.attn_pool.query).view(2, 12)
    k = vit.attn_pool.to_kv(tokens).unflatten(-1, (2, 2, 12))[:, 0]
    for segment, found in enumerate(maps):
        own = where.segment == segment
        expected = torch.softmax(torch.einsum("hd,khd->hk", q, k[own]) / 12**0.5, -1)
        assert_close(found.flatten(1), expected)
        assert_close(found.sum((1, 2)), torch.ones(2))
    assert not any(module._forward_hooks for module in vit.modules())
