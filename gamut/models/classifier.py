"""A classifier of packed clips: backbone, pooling to one vector a clip or a frame, LayerNorm + Linear."""

from __future__ import annotations

import torch
from torch import nn

from gamut.models.backbone import build
from gamut.models.initialise import initialise, unfilled
from gamut.models.layout import Layout
from gamut.models.pooling import band_means, column_means, linear_softmax
from gamut.recipe import schema


class Classifier(nn.Module):
    """LayerNorm + Linear (AST, ElasticAST)."""

    def __init__(self, dim: int, classes: int, seed: int = 0, eps: float = 1e-6) -> None:
        super().__init__()
        with unfilled():
            self.norm = nn.LayerNorm(dim, eps=eps)
            self.linear = nn.Linear(dim, classes)
        initialise(self, seed)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits [S, classes] from one vector a clip, [S, dim]."""
        return self.linear(self.norm(pooled))


class ClassifierNetwork(nn.Module):
    """AST, ElasticAST and fine-tuned ASiT: the recipe's model section tells them apart. Weights come from `seed`.

    Where `model.pooling` is `rows`, the classifier reads the means over time of a clip's rows of patches, side by side
    (`band_means`: MSM-MAE, M2D). Where it is `frames`, each column of patches (16 frames of the log-mel) is classified
    by itself, and a clip by the linear softmax of its columns.

    >>> network = ClassifierNetwork(schema.Model(dim=32, depth=1, heads=2, pooling="mean"), classes=5, seed=0)
    >>> where = network.backbone.layout(torch.tensor([32, 48]), (32, 48))
    >>> network(torch.zeros(40, 256), where, None).shape
    torch.Size([2, 5])
    """

    def __init__(self, model: schema.Model, classes: int, seed: int) -> None:
        super().__init__()
        self.by_rows, self.by_frames = model.pooling == "rows", model.pooling == "frames"
        self.backbone = build(model, seed)
        width = model.dim * (self.backbone.bands if self.by_rows else 1)
        self.head = Classifier(width, classes, seed=seed + 1, eps=model.head_eps)

    def freeze(self) -> None:
        """Let only the classifier learn, and attention pooling where there is some."""
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name.startswith("attn_pool."))

    def forward(
        self, patches: torch.Tensor, where: Layout, drop_keys: torch.Tensor | None, frames: bool = False
    ) -> torch.Tensor:
        """Logits, [S, classes], of packed patches [N, 256].

        frames: of every column of every segment instead, [sum(where.widths), classes]; only where the pooling is so.
        """
        tokens = self.backbone(patches, where, drop_keys)
        if self.by_rows:
            return self.head(band_means(tokens, where).to(tokens.dtype))
        if not self.by_frames:
            return self.head(self.backbone.pool(tokens, where))
        logits = self.head(column_means(tokens, where))
        return logits if frames else linear_softmax(logits, where.columns)
