"""Weights on disk: safetensors with metadata, found by what a person would name, loaded strictly.

Of others, such as ImageNet's ViTs, also what torch.save wrote (.pth, .bin), read as tensors and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from gamut.errors import CheckpointError
from gamut.models.image import HUGGING_FACE_KERNEL, KERNEL, from_image, is_image, timm_names
from gamut.models.positions import resize_grid, stretch
from gamut.models.vit import VisionTransformer
from gamut.unpickle import unpickle

OBJECTIVE = "objective.safetensors"  # in a checkpoint folder: teacher and centres
MODEL = "model.safetensors"  # in a checkpoint folder: the model that was trained
PICKLED = "pytorch_model.bin"  # in a folder that transformers wrote
ANCHOR = KERNEL  # every backbone has it, so it shows where one begins
AVERAGED = {"teacher", "momentum_encoder", "state_dict_ema", "model_ema"}  # of two backbones in a file the better one


def save_weights(path: Path, weights: nn.Module | dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and metadata (values as JSON) to `path`: whole and durable, or not at all."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    # safetensors 0.8 writes a broken header for an empty dictionary, hence the None.
    data = save(plain, {name: json.dumps(value) for name, value in metadata.items()} or None)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors on the CPU, metadata) of a safetensors file, or of what torch.save wrote (then without metadata).

    A file of a checkpoint is checked against the hash in its folder's manifest.json. Dictionaries inside each other
    become one, their keys joined by dots. Raises CheckpointError where the file is missing, damaged, neither of the
    two, or pickled with more than tensors in it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"The weights {path} cannot be read: {error.strerror}.") from error
    expected = _manifest(path.parent).get(path.name)
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise CheckpointError(
            f"{path} is damaged: its sha256 is not the one in manifest.json. Take another checkpoint."
        )
    if data[8:9] != b"{" and data.startswith((b"PK\x03\x04", b"\x80")):  # as torch.save begins, now and formerly
        return dict(sorted(_tensors(unpickle(data, str(path), [argparse.Namespace])).items())), {}
    try:
        state = load(data)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}).") from error
    # The library's order of names changes from call to call.
    return dict(sorted(state.items())), {name: _read_json(value) for name, value in metadata.items()}


def _tensors(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor that lies under names alone: not the state of optimisers, which goes by numbers."""
    found: dict[str, torch.Tensor] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(name, str):
            found |= _tensors(value, f"{prefix}{name}.")
    return found


def _read_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value  # a foreign file's plain string


def _manifest(folder: Path) -> dict[str, str]:
    """sha256 of each file that a checkpoint folder's manifest lists; empty where there is no manifest."""
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        return {name: entry["sha256"] for name, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'manifest.json'} cannot be read; take another checkpoint.") from error


def find_weights(init: str | Path) -> Path:
    """The file that `init` means: a file of weights, a checkpoint folder, a run folder (its newest checkpoint), or a
    folder that transformers wrote.

    Of a checkpoint it is the file with the teacher where there is one, else the trained model. Raises CheckpointError
    saying what was looked for.
    """
    path = Path(init).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"init = {init}: there is no such file or folder.")
    if (path / "checkpoints").is_dir():
        return _in_checkpoint(_newest(path / "checkpoints"))
    return _in_checkpoint(path)


def _newest(folder: Path) -> Path:
    try:
        name = (folder / "latest").read_text().strip()
    except OSError as error:
        raise CheckpointError(
            f"The run {folder.parent} has published no checkpoint yet: no {folder / 'latest'}."
        ) from error
    if not name or Path(name).name != name or not (folder / name).is_dir():
        raise CheckpointError(f"{folder / 'latest'} names {name!r}, and there is no such checkpoint beside it.")
    return folder / name


def _in_checkpoint(folder: Path) -> Path:
    for name in (OBJECTIVE, MODEL):
        path = folder / name
        if path.is_file() and any(tensor.endswith((ANCHOR, HUGGING_FACE_KERNEL)) for tensor in _names(path)):
            return path
    if (folder / PICKLED).is_file():
        return folder / PICKLED
    raise CheckpointError(
        f"{folder} is neither a run nor a checkpoint with a backbone in it: no {OBJECTIVE} or {MODEL} there has a "
        f"tensor {ANCHOR}."
    )


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}).") from error


@dataclass(frozen=True)
class Loaded:
    """What `load_backbone` did, for the log."""

    path: Path
    prefix: str  # of the backbone's tensors in the file
    resized: tuple[str, ...]  # position tables stretched to the model's length
    fresh: tuple[str, ...]  # the model's own pooling, which the file has none of
    dropped: tuple[str, ...]  # tensors of the file that the backbone has no use for
    image: str = ""  # what was done to the weights of an image's ViT

    def __str__(self) -> str:
        groups = Counter(name.removeprefix(self.prefix).split(".")[0] for name in self.dropped)
        parts = [f"backbone from {self.path} ({self.prefix}*)"]
        if self.image:
            parts.append(f"a ViT of images: {self.image}")
        if self.resized:
            parts.append(f"resized {', '.join(self.resized)}")
        if self.fresh:
            parts.append(f"not in it, so from the seed: {', '.join(self.fresh)}")
        if groups:
            parts.append("left out " + ", ".join(f"{group} ({n} tensors)" for group, n in sorted(groups.items())))
        return "; ".join(parts)


def load_backbone(vit: VisionTransformer, init: str | Path, prefix: str = "teacher.backbone.") -> Loaded:
    """Copy a saved backbone into `vit`, strictly: every tensor must be there and fit, or nothing is copied.

    Position tables of another length are interpolated, once, here. Attention pooling may be absent from the file (it
    then keeps its fresh weights), and a file's CLS token is left out of a model that has none. Where no tensor has
    `prefix`, the one backbone in the file is taken, whatever its prefix; of two, the one that is an average of weights
    (a teacher). A ViT of images, in timm's or transformers' names, becomes one of spectrograms (`gamut.models.image`).

    Raises CheckpointError naming the first tensor that is missing or misshapen.
    """
    path = find_weights(init)
    state = timm_names(load_weights(path)[0])
    prefix = _prefix(state, prefix, path)
    saved = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    used, image = {prefix + name for name in saved}, ""
    if is_image(saved):
        saved, image = from_image(saved, vit, path)
    used -= {prefix + name for name in saved}  # what became something else
    own = vit.state_dict()
    fresh = tuple(name for name in own if name.startswith("attn_pool.") and name not in saved)
    # The model's own kind of part, but one it lacks (a deeper block), is a mismatch; other parts (heads) are left out.
    parts = {name.split(".")[0] for name in own} - {"attn_pool"}
    unknown = [name for name in saved if name not in own and name.split(".")[0] in parts]
    taken = used | {prefix + name for name in own}
    dropped = tuple(name for name in state if name not in taken)
    fitted, resized = {}, []
    for name, mine in own.items():
        if name in fresh:
            continue
        if name not in saved:
            raise CheckpointError(
                f"{path} has no tensor {prefix}{name}; its model is of another kind than this recipe's."
            )
        tensor = saved[name] if image else _fit_positions(name, saved[name], vit, "cls_token" in saved)
        if tensor.shape != mine.shape:
            raise CheckpointError(
                f"{prefix}{name} in {path} has shape {tuple(saved[name].shape)}, this model's has "
                f"{tuple(mine.shape)}: use the model section that it was trained with."
            )
        if tensor.shape != saved[name].shape:
            resized.append(name)
        fitted[name] = tensor
    if unknown:
        raise CheckpointError(
            f"{path} has a tensor {prefix}{unknown[0]} that this model lacks: use the model section that it was "
            "trained with."
        )
    with torch.no_grad():
        for name, tensor in fitted.items():
            own[name].copy_(tensor)
    return Loaded(path, prefix, tuple(resized), fresh, dropped, image)


def _prefix(state: dict[str, torch.Tensor], wanted: str, path: Path) -> str:
    found = sorted(name.removesuffix(ANCHOR) for name in state if name.endswith(ANCHOR))
    if wanted in found:
        return wanted
    averaged = [one for one in found if AVERAGED & set(one.split("."))]
    if len(found) == 1 or len(averaged) == 1:
        return (averaged or found)[0]
    there = f"it has those of {', '.join(found)}" if found else "it has none"
    raise CheckpointError(
        f"{path} has no backbone under {wanted}*: {there}. Give a file with one vision transformer in it."
    )


def _fit_positions(name: str, tensor: torch.Tensor, vit: VisionTransformer, saved_class_token: bool) -> torch.Tensor:
    """A saved tensor, or, if it is a position table of another length, the table at this model's length."""
    if name == "pos_embed" and tensor.ndim == 3:
        if saved_class_token and not vit.class_token:
            tensor = tensor[:, 1:]
        prefix = int(vit.class_token)
        if (tensor.shape[1] - prefix) % 8 == 0 and tensor.shape[1] > prefix:
            return resize_grid(tensor, vit.table_columns, prefix)
    if name == "pos_embed_time" and tensor.ndim == 2 and len(tensor):
        return stretch(tensor, vit.table_columns, "linear")
    return tensor
