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
READ: dict[str, np.dtype] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4"), "int8": np.dtype("<f2")}
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
    def between(cls, x: np.ndarray, stored: np.ndarray) -> Error:
        x64 = np.asarray(x, np.float64)
        axes = (0, 2, 3)
        return cls((x64**2).sum(axes), ((x64 - np.asarray(stored, np.float64)) ** 2).sum(axes))

    def __add__(self, other: Error) -> Error:
        return Error(self.squares + other.squares, self.differences + other.differences)

    def relative(self) -> list[float]:
        """Root mean square of the error over that of the features, a layer."""
        return np.sqrt(self.differences / np.maximum(self.squares, 1e-300)).tolist()


def store(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 [n, layers, steps, dim] as it is stored: [n, layers, stored_steps, dim] of STORED[dtype].

    A value that the type cannot hold becomes infinite (`fp16`, and the scales of `int8`): `lost` finds it.
    """
    x = np.ascontiguousarray(x, np.float32)
    if dtype != "int8":
        with np.errstate(over="ignore"):
            return x.astype(STORED[dtype])
    most = np.abs(x).max(2) if x.shape[2] else np.zeros((*x.shape[:2], x.shape[3]), np.float32)
    with np.errstate(over="ignore"):
        scale = (most / LEVELS).astype("<f2")
        scale = np.where(scale.astype(np.float32) * LEVELS < most, np.nextafter(scale, np.float16(np.inf)), scale)
    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)[:, :, None]
    numbers = np.clip(np.rint(x / divisor), -LEVELS, LEVELS).astype(np.int8)
    rows = np.ascontiguousarray(scale.astype("<f2")).view(np.int8).reshape(*scale.shape[:2], SCALES, scale.shape[2])
    return np.concatenate([numbers, rows], axis=2)


def load(stored: np.ndarray, dtype: str) -> np.ndarray:
    """What `store` stored, as READ[dtype]: [n, layers, steps, dim]."""
    if dtype != "int8":
        return stored
    numbers, rows = stored[:, :, :-SCALES], np.ascontiguousarray(stored[:, :, -SCALES:])
    scale = rows.reshape(*rows.shape[:2], SCALES * rows.shape[3]).view("<f2")
    product = torch.from_numpy(numbers).to(torch.float16) * torch.from_numpy(scale)[:, :, None]
    return product.numpy()


def lost(stored: np.ndarray, dtype: str) -> np.ndarray:
    """bool [n]: records with a value that is not finite."""
    return ~np.isfinite(load(stored, dtype)).all((1, 2, 3))
