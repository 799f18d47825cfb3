"""BEATs (Chen et al. 2022, section 3): a transformer on 16x16 patches that knows distances, not places.

Each token attends with a bias that depends on how far the other is in the sequence of patches (T5's buckets), the same
in all blocks, times a gate of its own query (WavLM's). A convolution over the sequence comes first. Norms come after
each sum, in which the stream counts `alpha` times (DeepNorm). So it is of any length, and has no tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

from gamut.errors import RecipeError
from gamut.models.backbone import Backbone
from gamut.models.initialise import initialise, unfilled
from gamut.models.layout import Layout
from gamut.models.pooling import mean_pool
from gamut.models.vit import PIXELS, Attention, Mlp, joined
from gamut.recipe import schema
from gamut.recipe.check import check_model

EMBEDDED = 512  # width of a patch before it is mapped to a token
BUCKETS = 320  # of distances, half of them to each side
FARTHEST = 800  # patches; all beyond share a bucket
TAPS, GROUPS = 128, 16  # of the convolution
EPS = 1e-5


class BeatsEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(PIXELS, EMBEDDED, bias=False)
        self.norm = nn.LayerNorm(EMBEDDED, eps=EPS)
        self.out = nn.Linear(EMBEDDED, dim)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.proj(patches.to(next(self.proj.parameters()).dtype))))


class BeatsAttention(Attention):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, None)
        self.gate = nn.Linear(dim // heads, 8)
        self.gate_scale = nn.Parameter(torch.empty(heads))

    def forward(self, x: torch.Tensor, where: Layout, biases: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """[T, dim] of the same; biases: [heads, length, length] for each length of a segment there is."""
        q, k, v = self.split(x)
        first, second = torch.sigmoid(self.gate(q).unflatten(-1, (2, 4)).sum(-1)).unbind(-1)
        gate = first * (second * self.gate_scale - 1.0) + 2.0  # [T, heads]
        outputs, at = [], 0
        for length, count in runs(where):  # neighbours of equal length are one batch
            span = slice(at, at := at + length * count)
            qs, ks, vs = (part[span].unflatten(0, (count, -1)).transpose(1, 2) for part in (q, k, v))
            bias = gate[span].unflatten(0, (count, -1)).transpose(1, 2)[..., None] * biases[length]
            attended = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=bias.to(qs.dtype))
            outputs.append(attended.transpose(1, 2).flatten(0, 1))
        return self.join(torch.cat(outputs)) if outputs else x


class BeatsBlock(nn.Module):
    def __init__(self, model: schema.Model) -> None:
        super().__init__()
        self.alpha = (2 * model.depth) ** 0.25
        self.attn = BeatsAttention(model.dim, model.heads)
        self.norm1 = nn.LayerNorm(model.dim, eps=EPS)
        self.mlp = Mlp(model.dim, int(model.dim * model.mlp_ratio))
        self.norm2 = nn.LayerNorm(model.dim, eps=EPS)

    def forward(
        self, x: torch.Tensor, where: Layout, biases: Mapping[int, torch.Tensor], keep: torch.Tensor | None
    ) -> torch.Tensor:
        """x: [T, dim]. keep: float32 [2, T, 1], what each branch is multiplied with; None: 1."""
        first, second = (None, None) if keep is None else keep.unbind()
        x = self.norm1(joined(self.alpha * x, self.attn(x, where, biases), first))
        return self.norm2(joined(self.alpha * x, self.mlp(x), second))


class Beats(Backbone):
    """BEATs over packed segments. Its sizes are the model section's `dim`, `depth`, `heads` and `mlp_ratio`.

    >>> beats = Beats(schema.Model(backbone="beats", dim=32, depth=1, heads=2, pooling="mean"))
    >>> where = beats.layout(torch.tensor([32, 48]), (32, 48))
    >>> beats(torch.zeros(40, 256), where).shape
    torch.Size([40, 32])
    """

    def __init__(self, model: schema.Model, seed: int = 0) -> None:
        super().__init__(model)
        check_model(model)
        if model.pooling != "mean" or model.dim % GROUPS:
            raise RecipeError(
                f"model.backbone beats has no class token and no query, and a convolution of {GROUPS} groups: set "
                f"model.pooling=mean, and model.dim to a multiple of {GROUPS}."
            )
        with unfilled():
            self.patch_embed = BeatsEmbed(model.dim)
            self.pos_conv = nn.Conv1d(model.dim, model.dim, TAPS, padding=TAPS // 2, groups=GROUPS)
            self.norm = nn.LayerNorm(model.dim, eps=EPS)
            self.distance = nn.Embedding(BUCKETS, model.heads)
            self.blocks = nn.ModuleList(BeatsBlock(model) for _ in range(model.depth))
        initialise(self, seed, model.init_std)

    def forward(self, patches: torch.Tensor, where: Layout, drop_keys: torch.Tensor | None = None) -> torch.Tensor:
        """See `Backbone`."""
        x = self.patch_embed(patches)
        x = self.norm(x + self._neighbours(x, where))
        near = {length: self._bias(length, x.device) for length in set(where.lengths)}
        keep = self.keep(where, drop_keys)
        for number, block in enumerate(self.blocks):
            x = block(x, where, near, None if keep is None else keep[2 * number : 2 * number + 2])
        return x

    def pool(self, tokens: torch.Tensor, where: Layout) -> torch.Tensor:
        """Their mean, [S, dim], from what `forward` returned."""
        return mean_pool(tokens, where)

    def _neighbours(self, x: torch.Tensor, where: Layout) -> torch.Tensor:
        outputs, at = [], 0
        for length, count in runs(where):
            rows = x[at : (at := at + length * count)].unflatten(0, (count, -1)).transpose(1, 2)
            outputs.append(F.gelu(self.pos_conv(rows)[..., :-1]).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs) if outputs else x

    def _bias(self, length: int, device: torch.device) -> torch.Tensor:
        return self.distance(buckets(length, device)).permute(2, 0, 1)


def runs(where: Layout) -> list[tuple[int, int]]:
    """(tokens of a segment, how many neighbours have as many), in order."""
    return [(length, len(list(same))) for length, same in groupby(where.lengths)]


def buckets(length: int, device: torch.device | None = None) -> torch.Tensor:
    """int64 [length, length]: the bucket of the distance from each token (row) to each other.

    Those ahead have the upper half. In each half the first 80 distances have one each; farther ones share, by their
    logarithm (Raffel et al. 2020).
    """
    place = torch.arange(length, device=device)
    ahead = place[None, :] - place[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = ahead.abs()
    shared = torch.log(distance.clamp_min(1).float() / exact) / math.log(FARTHEST / exact) * (half - exact)
    far = (exact + shared.long()).clamp_max(half - 1)
    return torch.where(distance < exact, distance, far) + (ahead > 0) * half
