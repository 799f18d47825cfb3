"""The only place that unpickles: tensors and a short list of DeepSpeed's own classes, nothing that can run code."""

from __future__ import annotations

import io
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from gamut.errors import CheckpointError

ALLOWED = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def unpickle(data: bytes, name: str, map_location: Any = "cpu") -> Any:
    """What torch.save wrote into `data`, whose hash the caller has checked. `name` is for the message.

    Raises CheckpointError where the pickle asks for anything that is not allowed; it is never loaded another way.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"The checkpoint file {name} holds something other than tensors and is not loaded ({first}). It was not "
            "written by this program, or by another version of it."
        ) from error
