"""From the tokens of visible patches to those of hidden ones: what a student that encodes only a part is judged by."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gamut.models.attention import cross_attention
from gamut.models.initialise import initialise, unfilled
from gamut.models.layout import Kept, Layout
from gamut.models.positions import sines
from gamut.models.vit import EPS, Block, Mlp, joined
from gamut.recipe import schema


class Gaps(NamedTuple):
    """Where the hidden patches of segments are, P patches in all."""

    whole: Layout  # of all patches
    kept: Kept  # those that are encoded
    hidden: torch.Tensor  # int64 [P - K], ascending: those that are not


def gaps(whole: Layout, kept: Kept) -> Gaps:
    """Without waiting for the device: how many are hidden is known."""
    encoded = torch.zeros_like(whole.patch).index_fill(0, kept.patch, 1)
    return Gaps(whole, kept, torch.argsort(encoded, stable=True)[: len(whole.patch) - len(kept.patch)])


class Predictor(nn.Module):
    """Tokens of hidden patches. Each begins as a mask token and its place (sines of time and frequency).

    `blocks` (MAE): blocks like the encoder's, of a width of their own, run over each segment's encoded and hidden
    tokens together. `cross` (CrossMAE): hidden tokens attend to their segment's encoded ones, and not to each other.
    Nothing is dropped at random.
    """

    def __init__(self, model: schema.Model, kind: str, dim: int, depth: int, seed: int) -> None:
        super().__init__()
        self.dim, self.cross = dim, kind == "cross"
        narrow = replace(model, dim=dim, norm="pre")
        with unfilled():
            self.enter = nn.Linear(model.dim, dim)
            self.mask_token = nn.Parameter(torch.empty(1, dim))
            self.blocks = nn.ModuleList((CrossBlock if self.cross else Block)(narrow) for _ in range(depth))
            self.norm = nn.LayerNorm(dim, eps=EPS)
            self.leave = nn.Linear(dim, model.dim)
        initialise(self, seed)

    def forward(self, tokens: torch.Tensor, where: Layout, gaps: Gaps) -> torch.Tensor:
        """[P - K, model.dim], in the order of `gaps.hidden`, from the tokens [T, model.dim] that the encoder gave."""
        whole, kept, hidden = gaps
        table = sines(max(whole.widths, default=1), whole.bands, self.dim).flatten(0, 1)
        table = table.to(whole.time.device, self.mask_token.dtype, non_blocking=True)
        places = F.embedding(whole.time * whole.bands + whole.frequency, table)
        seen = self.enter(tokens)
        seen = seen + torch.zeros_like(seen, dtype=places.dtype).index_copy(0, where.patch, places[kept.patch])
        x = (self.mask_token + places[hidden]).to(seen.dtype)
        if self.cross:
            counts = whole.columns * whole.bands - kept.counts
            sizes = tuple(width * whole.bands - size for width, size in zip(whole.widths, kept.sizes, strict=True))
            for block in self.blocks:
                x = block(x, seen, where, (counts, sizes, whole.owner[hidden]))
            return self.leave(self.norm(x))
        own = torch.empty_like(where.segment).index_copy(0, where.patch, whole.patch[kept.patch])
        own = own.index_copy(0, where.cls, whole.cls)
        x = seen.new_empty(whole.tokens, self.dim).index_copy(0, own, seen).index_copy(0, whole.patch[hidden], x)
        for block in self.blocks:
            x = block(x, whole, None)
        return self.leave(self.norm(torch.index_select(x, 0, whole.patch[hidden])))


class CrossBlock(nn.Module):
    """A block whose queries attend to other tokens, of their own segment."""

    def __init__(self, model: schema.Model) -> None:
        super().__init__()
        self.heads, self.scale = model.heads, model.attention_scale
        self.norm1 = nn.LayerNorm(model.dim, eps=EPS)
        self.norm_seen = nn.LayerNorm(model.dim, eps=EPS)
        self.to_q = nn.Linear(model.dim, model.dim)
        self.to_kv = nn.Linear(model.dim, 2 * model.dim)  # keys, then values
        self.proj = nn.Linear(model.dim, model.dim)
        self.norm2 = nn.LayerNorm(model.dim, eps=EPS)
        self.mlp = Mlp(model.dim, int(model.dim * model.mlp_ratio))

    def forward(
        self,
        x: torch.Tensor,
        seen: torch.Tensor,
        where: Layout,
        queries: tuple[torch.Tensor, tuple[int, ...], torch.Tensor],
    ) -> torch.Tensor:
        """[Q, dim] from x [Q, dim], which attends to the tokens `seen` [T, dim]. queries: as of `cross_attention`."""
        q = self.to_q(self.norm1(x)).unflatten(-1, (self.heads, -1))
        k, v = self.to_kv(self.norm_seen(seen)).unflatten(-1, (2, self.heads, -1)).unbind(1)
        x = joined(x, self.proj(cross_attention(q, k, v, where, queries, self.scale).flatten(1)), None)
        return joined(x, self.mlp(self.norm2(x)), None)
