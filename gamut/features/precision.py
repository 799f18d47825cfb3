"""How features are stored as numbers: fp16, fp32, or int8 with a scale for each channel.

An int8 record is [layers, steps + 2, dim]: the numbers, then two rows that are the float16 scales of the layer's
channels. A scale for each channel, since a few channels of a transformer are a hundred times the size of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

STORED: dict[str, np.dtype] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4"), "int8": np.dtype("i1")}
SAFETENSORS = {"fp16": "F16", "fp32": "F32", "int8": "I8"}
SCALES = 2  # rows of int8 that hold a row of float16
LEVELS = 127


def stored_steps(dtype: str, steps: int) -> int:
    """Rows of a layer in a record."""
    return steps + SCALES if dtype == "int8" else steps


@dataclass(frozen=True)
class Error:
    """What storing has cost, in sums over values, a layer: float64 [layers] each."""

    squares: np.ndarray  # of x
    differences: np.ndarray  # of (x - stored x), squared

    @classmethod
    def none(cls, layers: int) -> Error:
        return cls(np.zeros(layers), np.zeros(layers))

    @classmethod
    def between(cls, x: torch.Tensor, stored: torch.Tensor) -> Error:
        """Of [n, layers, steps, dim] both."""
        exact = x.double()
        sums = [each.square().sum((0, 2, 3)).cpu().numpy() for each in (exact, exact - stored)]
        return cls(sums[0], sums[1])

    def __add__(self, other: Error) -> Error:
        return Error(self.squares + other.squares, self.differences + other.differences)

    def relative(self) -> list[float]:
        """Root mean square of the error over that of the features, a layer."""
        return np.sqrt(self.differences / np.maximum(self.squares, 1e-300)).tolist()


def store(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """float32 [n, layers, steps, dim] as it is stored: [n, layers, stored_steps, dim], on x's device.

    A value that the type cannot hold comes back from `load` as one that is not finite.
    """
    if dtype != "int8":
        return x.to(torch.float16 if dtype == "fp16" else torch.float32)
    most = x.abs().amax(2, keepdim=True)
    # The next float16 above: rounded down, the largest value of a channel would be cut.
    scale = (most / LEVELS).to(torch.float16)
    scale = torch.where(scale.float() * LEVELS < most, _next(scale), scale)
    numbers = (x / torch.where(scale > 0, scale, 1).float()).round().clamp(-LEVELS, LEVELS)
    numbers = torch.where(scale.isfinite(), numbers, 0).to(torch.int8)
    n, layers, _, dim = x.shape
    rows = scale.reshape(n, layers, dim).contiguous().view(torch.int8).reshape(n, layers, SCALES, dim)
    return torch.cat([numbers, rows], 2)


def load(stored: torch.Tensor, dtype: str) -> torch.Tensor:
    """What `store` stored: float16, of fp32 float32, [n, layers, steps, dim]."""
    if dtype != "int8":
        return stored
    n, layers, _, dim = stored.shape
    rows = stored[:, :, -SCALES:].contiguous()
    scale = rows.reshape(n, layers, SCALES * dim).view(torch.float16)
    return stored[:, :, :-SCALES].to(torch.float16) * scale[:, :, None]


def _next(scale: torch.Tensor) -> torch.Tensor:
    """The next larger float16 of numbers that are not negative."""
    return (scale.view(torch.int16) + 1).view(torch.float16)
