"""ASiT's three losses, and KoLeo, as sums, so that their denominators can be counted over the whole global step."""

from __future__ import annotations

import torch
import torch.nn.functional as F

NEAREST = 1e-3  # the least distance that KoLeo tells from 0


def reconstruction(predicted: torch.Tensor, pixels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Sum of |predicted - pixels| over hidden pixels (Eq. 3; the paper's sum, divided by their number elsewhere).

    predicted, pixels: [tokens, 256]; hidden: bool [tokens, 256]. float32 scalar.
    """
    return ((predicted.float() - pixels).abs() * hidden).sum()


def teacher_distribution(logits: torch.Tensor, centre: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax((z - centre) / temperature), float32 [n, K]: centred and sharpened (Eq. 5)."""
    return F.softmax((logits.float() - centre) / temperature, dim=-1)


def cross_entropy(target: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over rows of H(target, softmax(logits / temperature)). target: [n, K]; logits: [n, K]. float32 scalar."""
    return -(target * F.log_softmax(logits.float() / temperature, dim=-1)).sum()


def crosswise(target: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over clips and over both directions of the CLS cross-entropy between a clip's two views (Eq. 7).

    target: [clips, 2, K]; logits: [clips, 2 + L, K]. The teacher's view 0 teaches the student's view 1 and the reverse,
    and both teach each of the student's L local crops: 2 + 2 L terms a clip (the published code's multi-crop has 10).
    """
    terms = cross_entropy(target.flip(1), logits[:, :2], temperature)
    if logits.shape[1] == 2:
        return terms
    return terms + cross_entropy(target.sum(1, keepdim=True), logits[:, 2:], temperature)


def entropy(distribution: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the entropy in nats. distribution: [n, K]."""
    return -(distribution * distribution.clamp_min(1e-12).log()).sum()


def koleo(vectors: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Sum of -log of the distance to the nearest neighbour on the unit sphere (KoLeo, Sablayrolles et al. 2019, Eq. 4).

    vectors: float32 [n, D]; group: int64 [n]; only rows of one group are neighbours. A row that is
    alone in its group adds nothing. float32 scalar. Distances are floored at NEAREST, smoothly: two clips of the same
    silence would push each other apart without bound.
    """
    if not len(vectors):
        return vectors.sum()
    unit = F.normalize(vectors, dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    beside = (group[:, None] == group) & ~itself
    with torch.no_grad():
        nearest = (unit @ unit.T).masked_fill(~beside, -torch.inf).argmax(dim=1)
    # A product with zeros and ones: an index's backward would add up in no fixed order on a GPU.
    neighbour = F.one_hot(nearest, len(unit)).to(unit.dtype) @ unit
    squares = (unit - neighbour).square().sum(dim=1) + NEAREST**2
    return -(squares.log() / 2).masked_fill(~beside.any(dim=1), 0.0).sum()
