"""Weights from a seed, without touching torch's global generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gamut.randomness import Purpose, key

STD = 0.02


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules made inside have no storage yet, so their constructors draw no random numbers and take no time."""
    with torch.device("meta"):
        yield


@torch.no_grad()
def initialise(module: nn.Module, seed: int, std: float = STD) -> None:
    """Give every parameter of a module made under `unfilled` its value, on the CPU.

    LayerNorm: 1 and 0. Biases: 0. Gains: 1. All else: a normal of standard deviation `std`, 0.02 as in ViT and ASiT,
    cut at 2 as everywhere.
    Parameters are NaN first, so that one which a later rule forgets shows at once.
    """
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.fill_(float("nan"))
    generator = torch.Generator().manual_seed(int(key(seed, Purpose.INIT)) >> 1)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, nn.LayerNorm):
                parameter.fill_(1.0 if name == "weight" else 0.0)
            elif name == "bias":
                parameter.zero_()
            elif name == "gain":
                parameter.fill_(1.0)
            else:
                nn.init.trunc_normal_(parameter, std=std, generator=generator)
