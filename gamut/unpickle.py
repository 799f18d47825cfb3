"""The only place that unpickles: tensors and a short list of plain classes, nothing that can run code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch

from gamut.errors import CheckpointError


def unpickle(data: bytes, name: str, allowed: Sequence[type] = (), map_location: Any = "cpu") -> Any:
    """What torch.save wrote into `data`: tensors, plain containers and numbers, and instances of `allowed`.

    `name` is the file's, for the message. Raises CheckpointError where the pickle asks for anything else; it is never
    loaded another way.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"The checkpoint file {name} holds something other than tensors and is not loaded ({first}). It was not "
            "written by this program, or by another version of it; of weights from elsewhere save the tensors alone, "
            "best as safetensors."
        ) from error
