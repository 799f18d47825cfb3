"""What may stand in a pickle of our own checkpoints: tensors and a short list of DeepSpeed's own classes."""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from gamut import unpickle as restricted

ALLOWED = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def unpickle(data: bytes, name: str, map_location: Any = "cpu") -> Any:
    """What torch.save wrote into `data`, whose hash the caller has checked. Raises CheckpointError as
    `gamut.unpickle` does."""
    return restricted.unpickle(data, name, ALLOWED, map_location)
