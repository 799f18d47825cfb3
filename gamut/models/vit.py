"""A vision transformer on packed 16x16 patches of log-mel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gamut.models.attention import attention
from gamut.models.backbone import Backbone
from gamut.models.initialise import initialise, unfilled
from gamut.models.layout import Layout
from gamut.models.pooling import AttentionPool, mean_pool
from gamut.models.positions import factorised_positions, grid_positions
from gamut.numbers import PATCH, columns
from gamut.recipe import schema
from gamut.recipe.check import check_model

PIXELS = 256  # of a patch
EPS = 1e-6


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(PIXELS, dim)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        # Not self.proj.weight.dtype: under ZeRO-3 touching the weight of a module inside gathers it, and keeps it.
        return self.proj(patches.to(next(self.proj.parameters()).dtype))


class Attention(nn.Module):
    """What stands before attention and after it; the block calls it."""

    def __init__(self, dim: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, [T, heads, d] each, of [T, dim]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return q, k, v

    def join(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, dim] of [T, heads, d]."""
        return self.proj(heads.flatten(1))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A block with its norms before attention and MLP, or after them (`model.norm`). Each of its two branches may be
    dropped for whole segments (stochastic depth).

    All but attention is in `before` and `after`, which see tensors alone: they can be compiled for any layout.
    """

    compiled = False  # whether they are

    def __init__(self, model: schema.Model) -> None:
        super().__init__()
        self.post = model.norm == "post"
        self.norm1 = nn.LayerNorm(model.dim, eps=EPS)
        self.attn = Attention(model.dim, model.heads, model.attention_scale)
        self.norm2 = nn.LayerNorm(model.dim, eps=EPS)
        self.mlp = Mlp(model.dim, int(model.dim * model.mlp_ratio))

    def forward(self, x: torch.Tensor, where: Layout, keep: torch.Tensor | None) -> torch.Tensor:
        """x: [T, dim]. keep: float32 [2, T, 1], what each branch is multiplied with; None: 1."""
        return self.after(x, attention(*self.before(x), where, self.attn.scale), keep)

    def before(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, [T, heads, d] each."""
        return self.attn.split(x if self.post else self.norm1(x))

    def after(self, x: torch.Tensor, heads: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """The block's output, of its input and what attention gave, [T, heads, d]."""
        first, second = (None, None) if keep is None else keep.unbind()
        x = joined(x, self.attn.join(heads), first)
        if self.post:
            x = self.norm1(x)
            return self.norm2(joined(x, self.mlp(x), second))
        return joined(x, self.mlp(self.norm2(x)), second)


def joined(x: torch.Tensor, branch: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """x + branch * keep, of x's dtype: [T, dim]. keep: float32 [T, 1]; None: 1."""
    if keep is None:
        return x + branch
    if torch.compiler.is_compiling():  # which fuses it, and loses the gradient of what was written to `out`
        return torch.addcmul(x, branch, keep).to(x.dtype)
    return _Joined.apply(x, branch, keep)


class _Joined(torch.autograd.Function):
    """One pass forward and one backward, in float32 within and rounded once: as torch's own operators it would be
    three each, of float32 copies of everything where x is bf16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, branch: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(keep)
        return torch.addcmul(x, branch, keep, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        (keep,) = ctx.saved_tensors
        return gradient, torch.mul(gradient, keep, out=torch.empty_like(gradient)), None


class VisionTransformer(Backbone):
    """ViT (Dosovitskiy et al.) over packed segments, with timm's parameter names.

    A CLS token leads every segment where the pooling is `cls`, and only there; in a `distilled` model a second one
    follows, and a segment's vector is the mean of the two (AST; DeiT trains them against two targets, AST together).
    Positions are read off tables for any length (`gamut.models.positions`). Weights come from `seed` alone; torch's
    generators are neither read nor moved.

    `grid`: frames and mel bins of a patch, 256 pixels in all, and how many are in a column, where it is a public
    encoder of other spectrograms than ours (`gamut.models.public`).

    >>> vit = VisionTransformer(schema.Model(dim=32, depth=1, heads=2, table_frames=64), seed=0)
    >>> where = vit.layout(torch.tensor([32, 48]), (32, 48))
    >>> tokens = vit(torch.zeros(40, 256), where)   # [42, 32]
    >>> vit.pool(tokens, where)                     # [2, 32]
    """

    def __init__(
        self, model: schema.Model, seed: int = 0, grid: tuple[int, int, int | None] = (PATCH, PATCH, None)
    ) -> None:
        super().__init__(model, grid[2])
        check_model(model)
        self.patch = grid[:2]
        self.table_columns = columns(model.table_frames, model.stride)
        with unfilled():
            self.patch_embed = PatchEmbed(model.dim)
            if self.class_token:
                self.cls_token = nn.Parameter(torch.empty(1, 1, model.dim))
            if model.distilled:
                self.dist_token = nn.Parameter(torch.empty(1, 1, model.dim))
            if model.positions == "learned":
                cells = self.special + self.table_columns * self.bands
                self.pos_embed = nn.Parameter(torch.empty(1, cells, model.dim))
            else:
                self.pos_embed_time = nn.Parameter(torch.empty(self.table_columns, model.dim))
                self.pos_embed_freq = nn.Parameter(torch.empty(self.bands, model.dim))
            self.blocks = nn.ModuleList(Block(model) for _ in range(model.depth))
            self.norm = nn.LayerNorm(model.dim, eps=EPS)
            if model.pooling == "attention":
                self.attn_pool = AttentionPool(model.dim, model.pooling_heads, model.attention_scale)
        initialise(self, seed, model.init_std)

    def forward(self, patches: torch.Tensor, where: Layout, drop_keys: torch.Tensor | None = None) -> torch.Tensor:
        """See `Backbone`. With drop_keys, and in training mode, branches are dropped for whole segments.

        Raises ValueError where patches and layout do not belong together.
        """
        if len(patches) != len(where.patch) or (where.special, where.bands) != (self.special, self.bands):
            raise ValueError(
                f"{len(patches)} patches do not fit a layout of {len(where.patch)} patches, {where.bands} a column and "
                f"{where.special} class tokens a segment; this model has {self.bands} a column and {self.special} "
                "class tokens a segment (class and distillation token)."
            )
        x = self.begin(self._embed(patches, where))
        keep = self.keep(where, drop_keys)
        for number, block in enumerate(self.blocks):
            x = block(x, where, None if keep is None else keep[2 * number : 2 * number + 2])
        return self.end(x)

    def begin(self, x: torch.Tensor) -> torch.Tensor:
        """What the first block gets of embedded tokens, [T, dim]."""
        return self.norm(x) if self.model.norm == "post" else x

    def end(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens, of what the last block gives, [T, dim]."""
        return x if self.model.norm == "post" else self.norm(x)

    def pool(self, tokens: torch.Tensor, where: Layout) -> torch.Tensor:
        """One vector a segment, [S, dim], from what `forward` returned."""
        if self.model.distilled:
            return (torch.index_select(tokens, 0, where.cls) + torch.index_select(tokens, 0, where.cls + 1)) / 2
        if self.model.pooling == "cls":
            return torch.index_select(tokens, 0, where.cls)
        if self.model.pooling == "attention":
            return self.attn_pool(tokens, where)
        return mean_pool(tokens, where)

    def _embed(self, patches: torch.Tensor, where: Layout) -> torch.Tensor:
        x = self.patch_embed(patches)
        if self.model.positions == "learned":
            x = x + grid_positions(self.pos_embed[0, self.special :], where, self.model.table_like)
        else:
            x = x + factorised_positions(self.pos_embed_time, self.pos_embed_freq, where)
        if not self.class_token:
            return x
        whole = x.new_empty(where.tokens, x.shape[1])
        whole = whole.index_copy(0, where.patch, x)
        leading = [self.cls_token, self.dist_token] if self.model.distilled else [self.cls_token]
        for number, token in enumerate(leading):
            one = token[0]
            if self.model.positions == "learned":
                one = one + self.pos_embed[0, number : number + 1]
            whole = whole.index_copy(0, where.cls + number, one.to(x.dtype).expand(where.segments, -1))
        return whole
