"""What lies in a folder that transformers wrote: config.json and weights, in one file or in several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gamut.errors import CheckpointError
from gamut.unpickle import unpickle

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of these the first that is there
INDEX = ".index.json"  # of weights in several files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that describes a model. Raises CheckpointError where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read ({why}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not describe a model.")
    return content


def config_beside(weights: Path) -> dict[str, Any]:
    """What transformers says of a model beside its weights; {} where it says nothing."""
    try:
        return read_json(weights.parent / CONFIG)
    except CheckpointError:
        return {}


def read_state(folder: Path, wanted: Callable[[str], str | None] = lambda name: name) -> dict[str, torch.Tensor]:
    """The tensors of the folder's weights by the names that `wanted` gives them, those that it gives None left out.

    safetensors are mapped, so what is left out costs nothing; pickles are read as tensors and nothing else. Raises
    CheckpointError where there are no weights, or they are damaged.
    """
    state: dict[str, torch.Tensor] = {}
    for path in _files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    state |= {new: file.get_tensor(name) for name in file.keys() if (new := wanted(name)) is not None}  # noqa: SIM118
            else:
                saved = unpickle(path.read_bytes(), str(path))
                state |= {new: tensor for name, tensor in saved.items() if (new := wanted(name)) is not None}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"The weights {path} cannot be read ({error}).") from error
    return state


def _files(folder: Path) -> list[Path]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}{INDEX}").is_file():
            index = read_json(folder / f"{name}{INDEX}")
            names = sorted(set(index.get("weight_map", {}).values()))
            if not names or any(Path(one).name != one for one in names):
                raise CheckpointError(f"{folder / f'{name}{INDEX}'} names no files of this folder.")
            return [folder / one for one in names]
    raise CheckpointError(f"There are no weights in {folder}: neither {' nor '.join(WEIGHTS)}.")
