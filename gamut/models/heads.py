"""What sits on the backbone of a pretraining: projection and reconstruction (ASiT). Weights come from a seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gamut.models.initialise import initialise, unfilled

PIXELS = 256


def _mlp(dim: int, hidden: int, bottleneck: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
    )


class UnitLinear(nn.Module):
    """A linear layer without bias whose rows have length 1, or the length `gain`: weight normalisation.

    The length of `weight` has no influence on the output, only on the size of its own gradient. The parameter is an
    ordinary one, normalised in the forward, so it may be sharded.
    """

    def __init__(self, features: int, outputs: int, trained_gain: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, features))
        self.gain = nn.Parameter(torch.empty(outputs)) if trained_gain else None

    def forward(self, x: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """frozen: the layer's gradients are zeros, with which AdamW leaves its output as it is."""
        weight = F.normalize(self.weight.float(), dim=1)
        if self.gain is not None:
            weight = weight * self.gain.float()[:, None]
        if frozen:
            weight = weight.detach() + 0.0 * weight  # zeros and not None: every rank reduces the same tensors
        return F.linear(x, weight.to(self.weight.dtype))


class ProjectionHead(nn.Module):
    """D-hidden-GELU-hidden-GELU-bottleneck, L2 normalise, unit-norm prototypes: logits are cosines (ASiT, DINO)."""

    def __init__(
        self, dim: int, hidden: int, bottleneck: int, prototypes: int, seed: int = 0, trained_gain: bool = False
    ) -> None:
        super().__init__()
        with unfilled():
            self.mlp = _mlp(dim, hidden, bottleneck)
            self.last_layer = UnitLinear(bottleneck, prototypes, trained_gain)
        initialise(self, seed)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the prototypes are compared with: [N, bottleneck] of length 1 from tokens [N, dim]."""
        x = self.mlp(tokens)
        return F.normalize(x.float(), dim=-1).to(x.dtype)

    def forward(self, tokens: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """[N, prototypes] from tokens [N, dim]; in [-1, 1] unless the gain is trained."""
        return self.last_layer(self.features(tokens), frozen)


class FeatureHead(nn.Module):
    """A linear map to what a teacher's blocks give (data2vec)."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        super().__init__()
        with unfilled():
            self.linear = nn.Linear(dim, dim)
        initialise(self, seed)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N, dim] from tokens [N, dim]."""
        return self.linear(tokens)


class ReconstructionHead(nn.Module):
    """D-hidden-GELU-hidden-GELU-bottleneck, then pixels (ASiT).

    The paper's transposed convolution has a 16x16 kernel and no overlap: a linear map from a token to its 256 pixels.
    last_gelu: a third GELU, after the bottleneck (the published code).
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, seed: int = 0, last_gelu: bool = False) -> None:
        super().__init__()
        with unfilled():
            self.mlp = _mlp(dim, hidden, bottleneck)
            if last_gelu:
                self.mlp.append(nn.GELU())
            self.pixels = nn.Linear(bottleneck, PIXELS)
        initialise(self, seed)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pixels [N, 256] (16 * time + frequency) from tokens [N, dim]."""
        return self.pixels(self.mlp(tokens))
