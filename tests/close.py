"""Numbers that must agree up to rounding: their largest difference, as a share of the largest of them.

How a sum rounds depends on the processor, its instructions and the number of threads. What it is wrong by goes with its
largest terms, so an element that cancelled to nearly nothing is wrong by as much as its large neighbours: a tolerance
for each element by itself holds on one machine and fails on the next.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike


def apart(found: ArrayLike | torch.Tensor, expected: ArrayLike | torch.Tensor) -> float:
    """The largest difference as a share of the largest magnitude in `expected`, both of one shape; inf where one has a
    number and the other none, or where `expected` is all zeros and `found` is not.

    >>> apart([1.0, 0.001], [1.0, 0.0])
    0.001
    """
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
    one, other = (_float64(values) for values in (found, expected))
    assert one.shape == other.shape, f"shapes {one.shape} and {other.shape}"
    some = np.isfinite(other)
    if not np.array_equal(one[~some], other[~some], equal_nan=True) or not np.isfinite(one[some]).all():
        return float("inf")
    difference = np.abs(one[some] - other[some]).max(initial=0.0)
    scale = np.abs(other[some]).max(initial=0.0)
    return float(difference / scale) if scale else float("inf") if difference else 0.0


def assert_close(
    found: ArrayLike | torch.Tensor, expected: ArrayLike | torch.Tensor, within: float = 1e-6, name: str = ""
) -> None:
    """Fail where they are further apart than `within`: DESIGN's 1e-6 unless another number has a reason."""
    share = apart(found, expected)
    assert share <= within, f"{name or 'they'} differ by {share:.3g} of the largest, where {within:.3g} is allowed"


def _float64(values: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().double().cpu().numpy()
    return np.asarray(values, np.float64)
