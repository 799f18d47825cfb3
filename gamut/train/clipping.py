"""Gradient clipping where a rank has whole gradients."""

from __future__ import annotations

import torch

TINY = 1e-6


@torch.no_grad()
def clip(gradients: list[torch.Tensor], limit: float, each: bool = False) -> None:
    """Shorten gradients in place so that their norm is at most `limit`: that of all together, or of `each` by itself.

    Each by itself is what the published ASiT code does; it changes the gradient's direction. Nothing waits for the
    device.
    """
    if not gradients:
        return
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients])
    if not each:
        norms = norms.square().sum().sqrt()
    shares = (limit / (norms + TINY)).clamp(max=1.0).float()
    if not each:
        torch._foreach_mul_(gradients, shares)
        return
    for gradient, share in zip(gradients, shares):
        gradient.mul_(share)
