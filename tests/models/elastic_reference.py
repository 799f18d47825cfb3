"""ElasticAST written out: padded rows, dense masks, and the key names of its public weights. Slow, and independent.

From the paper (section 3) and the names and shapes of the public weights alone: rows of clips, each row padded to the
longest; a square mask a row that lets a token see its own clip; factorised positions by the index of row and column;
one query that attends to the tokens of each clip. Nothing here is shared with the package.
"""

from __future__ import annotations

import torch
from torch import nn

EPS = 1e-6


class Attend(nn.Module):
    """softmax(scale * Q K^T) V over heads, with a mask that says who may see whom."""

    def __init__(self, dim: int, heads: int, scale: float, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=bias)  # keys, then values
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """queries [B, Q, D], tokens [B, L, D], allowed bool [B, Q, L]."""
        keys, values = self.to_kv(tokens).chunk(2, dim=-1)
        split = lambda x: x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # noqa: E731
        scores = split(self.to_q(queries)) @ split(keys).transpose(2, 3) * self.scale
        shares = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
        shares = torch.nan_to_num(shares)  # a padded query sees nothing
        return self.proj((shares @ split(values)).transpose(1, 2).flatten(2))


class Feed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, scale: float, bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn = Attend(dim, heads, scale, bias)
        self.mlp = Feed(dim)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, normed, allowed)
        return x + self.mlp(self.norm2(x))


class Layers(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.modules_list = nn.ModuleList(layers)


class ElasticReference(nn.Module):
    def __init__(
        self, dim: int, depth: int, heads: int, columns: int, classes: int, scale: float = 1.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Linear(256, dim))
        self.pos_embed_freq = nn.Parameter(torch.zeros(8, dim))
        self.pos_embed_time = nn.Parameter(torch.zeros(columns, dim))
        self.blocks = Layers([Layer(dim, heads, scale, bias) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.attn_pool_queries = nn.Parameter(torch.zeros(dim))
        self.attn_pool = Attend(dim, 12, scale)
        self.mlp_norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, classes)

    def forward(self, rows: list[list[torch.Tensor]]) -> torch.Tensor:
        """Logits [clips, classes] of rows of clips, each a normalised log-mel [mel 128, frames], in order."""
        longest = max(sum(clip.shape[1] // 2 for clip in row) for row in rows)
        clips = max(len(row) for row in rows)
        dim = len(self.attn_pool_queries)
        tokens = torch.zeros(len(rows), longest, dim)
        owner = torch.full((len(rows), longest), -1)
        for number, row in enumerate(rows):
            at = 0
            for clip, mel in enumerate(row):
                squares = mel.unfold(0, 16, 16).unfold(1, 16, 16)  # [8, columns, 16 mel, 16 frames]: frequency first
                high, wide = squares.shape[:2]
                embedded = self.patch_embed(squares.reshape(high * wide, 256))
                embedded = embedded + self.pos_embed_freq.repeat_interleave(wide, 0)
                embedded = embedded + self.pos_embed_time[:wide].repeat(high, 1)
                tokens = tokens.clone()
                tokens[number, at : at + high * wide] = embedded
                owner[number, at : at + high * wide] = clip
                at += high * wide
        allowed = (owner[:, :, None] == owner[:, None, :]) & (owner >= 0)[:, :, None]
        for layer in self.blocks.modules_list:
            tokens = layer(tokens, allowed)
        tokens = self.norm(tokens)
        queries = self.attn_pool_queries.expand(len(rows), clips, dim)
        pooled = self.attn_pool(queries, tokens, torch.arange(clips)[None, :, None] == owner[:, None, :])
        vectors = torch.cat([pooled[number, : len(row)] for number, row in enumerate(rows)])
        return self.head(self.mlp_norm(vectors))
