"""The only place that unpickles: tensors and a short list of plain classes, nothing that can run code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from gamut.errors import CheckpointError

# Packages whose objects lie beside the tensors of public weights (fairseq's config), by the first part of their name.
# Such an object is read as one of `Left`, whatever its class was: nothing of theirs is imported, and none of it runs.
CONFIGS = ("fairseq", "omegaconf", "EAT", "SSLAM")
PLAIN = (
    "typing.Any",
    "collections.defaultdict",
    *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "bool", "str")),
)


class Left:
    """What stands for an object that is left out, and keeps nothing of what it is given."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


def unpickle(
    data: bytes | Path, name: str, allowed: Sequence[type] = (), map_location: Any = "cpu", configs: bool = False
) -> Any:
    """What torch.save wrote into `data`: tensors, plain containers and numbers, and instances of `allowed`. Of a path
    the tensors are mapped, and read where they are used.

    `name` is the file's, for the message. configs: objects of `CONFIGS` are read as empty ones of `Left`. Raises
    CheckpointError where the pickle asks for anything else; it is never loaded another way.
    """
    try:
        known: list[Any] = list(allowed)
        if configs:
            known += [(Left, one) for one in _foreign(data)]
        lazy = {"mmap": True} if isinstance(data, Path) and _is_zip(data) else {}
        with torch.serialization.safe_globals(known):
            return torch.load(_file(data), map_location=map_location, weights_only=True, **lazy)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"The checkpoint file {name} holds something other than tensors and is not loaded ({first}). It was not "
            "written by this program, or by another version of it; of weights from elsewhere save the tensors alone, "
            "best as safetensors."
        ) from error


def _file(data: bytes | Path) -> Any:
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _is_zip(data: bytes | Path) -> bool:
    """Whether it is as torch.save writes since 1.6."""
    if isinstance(data, bytes):
        return data.startswith(b"PK")
    with open(data, "rb") as file:
        return file.read(2) == b"PK"


def _foreign(data: bytes | Path) -> list[str]:
    """The classes of `CONFIGS` that the pickle asks for, and what else these need."""
    if not _is_zip(data):
        return []
    there = get_unsafe_globals_in_checkpoint(_file(data))
    foreign = [one for one in there if one.split(".")[0] in CONFIGS]
    return foreign + [one for one in there if foreign and one in PLAIN]
