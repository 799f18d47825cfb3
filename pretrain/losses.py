"""The three losses of ASiT as sums, so that their denominators can be counted over the whole global step."""

from __future__ import annotations

import torch
import torch.nn.functional as F


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
