"""The numbers that all rooms agree on, and how a log-mel is cut into patches.

Patches are of 16x16: side by side, or overlapping where their stride is below 16 (AST: 10).
"""

from __future__ import annotations

import math
from typing import TypeVar

RATE = 16_000  # Hz, of everything that is stored and seen by a model
HOP = 160  # samples, 10 ms: from frame to frame at resolution C = 1
WINDOW = 400  # samples, 25 ms: of a frame
BINS = 128  # mel bins of a frame
PATCH = 16  # frames and mel bins of a patch
CLIPS_A_SHARD = 128  # of a cache of features
EXIT_PREEMPTED = 75  # EX_TEMPFAIL, how a stage says: saved; start me again to go on

Count = TypeVar("Count")  # a number, a NumPy array or a tensor of integers


def columns(frames: Count, stride: int = PATCH) -> Count:
    """Patches over the time of so many frames, 16 or more (integers of any kind).

    >>> columns(1024), columns(1024, 10)
    (64, 101)
    """
    return (frames - PATCH) // stride + 1  # type: ignore[operator, return-value]


def bands(stride: int = PATCH) -> int:
    """Patches over frequency, the bands of a grid of patches: 8, or 12 at a stride of 10."""
    return columns(BINS, stride)


def frames_of(columns: int, stride: int = PATCH) -> int:
    """The frames under so many columns of patches."""
    return (columns - 1) * stride + PATCH


def kept(patches: int, share: float) -> int:
    """How many of a view's patches reach the model where this share of them is dropped, rounded down.

    >>> kept(496, 0.1)
    447
    """
    return patches - math.floor(patches * share)
