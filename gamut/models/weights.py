"""Weights on disk: safetensors with metadata, found by what a person would name, loaded strictly.

Other weights, such as ImageNet's ViTs, may also be files of torch.save (.pth, .bin), read as tensors and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from gamut.errors import CheckpointError
from gamut.files import write_bytes
from gamut.models.backbone import Backbone
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import (
    HASH,
    OURS,
    described,
    find_weights,
    hash_in,
    is_pickled,
    metadata_of,
    statistics_in,
    told,
    undescribed,
)
from gamut.models.names import BEATS_KERNEL, EAT_KERNELS, KERNEL, our_names
from gamut.models.origin import as_ours
from gamut.models.strict import copy_into, require_fit
from gamut.models.vit import VisionTransformer
from gamut.track.checkpoints import step_of, whole_before
from gamut.unpickle import unpickle

ANCHOR = KERNEL  # every vision transformer has it, so it shows where one begins
# Parts that come with one kind of pooling or positions: of these a classifier must have what its file has.
KINDS = {
    "cls_token": "model.pooling",
    "dist_token": "model.distilled",
    "attn_pool": "model.pooling",
    "pos_embed_time": "model.positions",
}
AVERAGED = {"teacher", "momentum_encoder", "state_dict_ema", "model_ema"}  # of two backbones in a file the better one


def save_weights(path: Path, weights: nn.Module | dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and what is to be known of them (JSON) to `path`: whole and durable, or not at all. Where there is
    something to be known, a hash of both is kept beside it, by which `load_weights` sees damage."""
    state = plain(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    said = json.loads(json.dumps(metadata))  # as it is read again
    about = said and said | {HASH: _hash(state, said)}
    # safetensors 0.8 writes a broken header for an empty dictionary, hence the None.
    write_bytes(path, save(state, described(about) or None))


def _hash(state: dict[str, torch.Tensor], metadata: dict[str, Any]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, and over metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: contiguous, in CPU memory, none sharing another's."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors on the CPU, metadata) of a safetensors file, or of what torch.save wrote (then without metadata).

    A file of a checkpoint is checked against the hash in its folder's manifest.json, another of ours against its own.
    Dictionaries inside each other become one, their keys joined by dots. Raises CheckpointError where the file is
    missing, damaged, neither of the two, or pickled with more than tensors in it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"The weights {path} cannot be read: {error.strerror}.") from error
    expected = _manifest(path.parent).get(path.name)
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in manifest.json.{_instead(path.parent)}")
    if is_pickled(data[:9]):
        return dict(sorted(_tensors(unpickle(data, str(path), [argparse.Namespace], configs=True)).items())), {}
    try:
        state = load(data)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}).") from error
    state = dict(sorted(state.items()))  # the library's order of names changes from call to call
    about, written = undescribed(metadata), hash_in(metadata)
    if written and written != _hash(state, about):
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one that was written with it.")
    return state, about


def shapes_of(path: Path) -> tuple[dict[str, torch.Size], dict[str, Any]]:
    """(shapes of the tensors that `load_weights` would give, and `cfg`, what fairseq wrote of the model beside them),
    without reading the tensors. {}: nothing that JSON could hold is said. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            begin = file.read(9)
        if is_pickled(begin):
            tree = unpickle(path, str(path), [argparse.Namespace], configs=True)
            told = tree.get("cfg") if isinstance(tree, dict) else None
            shapes = {name: tensor.shape for name, tensor in _tensors(tree).items()}
            return shapes, told if isinstance(told, dict) else {}
        with safe_open(path, "pt") as file:
            return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}, {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"The weights {path} cannot be read ({error}).") from error


def _tensors(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor that lies under names alone: not the state of optimisers, which goes by numbers."""
    found: dict[str, torch.Tensor] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(name, str):
            found |= _tensors(value, f"{prefix}{name}.")
    return found


def file_sha256(path: Path) -> str:
    """sha256 of a file of weights: of a checkpoint as its manifest says, else of its bytes. Raises CheckpointError."""
    if known := _manifest(path.parent).get(path.name):
        return known
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"The weights {path} cannot be read: {error.strerror}.") from error


def _instead(checkpoint: Path) -> str:
    """What may be taken in place of a damaged checkpoint, as a sentence; empty for a folder that is none."""
    if step_of(checkpoint) < 0:
        return ""
    older = whole_before(checkpoint)
    return f" Take {older}, the newest whole one before it." if older else " There is no whole one before it."


def _manifest(folder: Path) -> dict[str, str]:
    """sha256 of each file that a checkpoint folder's manifest lists; empty where there is no manifest."""
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        return {name: entry["sha256"] for name, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'manifest.json'} cannot be read.{_instead(folder)}") from error


@dataclass(frozen=True)
class Loaded:
    """What was taken of a file of weights, for the log."""

    path: Path
    prefix: str  # of what was taken, in the file
    resized: tuple[str, ...]  # position tables stretched to the model's length
    fresh: tuple[str, ...]  # what the file has not, or not for these classes: pooling, a head's classifier
    dropped: tuple[str, ...]  # tensors of the file that the model has no use for
    note: str = ""  # what was done to the weights of another kind of model
    what: str = "backbone"
    warning: str = ""  # how they differ from what they are now to be used for

    def __str__(self) -> str:
        groups = Counter(name.removeprefix(self.prefix).split(".")[0] for name in self.dropped)
        parts = [f"{self.what} from {told(self.path)} ({self.prefix}*)"]
        if self.note:
            parts.append(self.note)
        if self.resized:
            parts.append(f"resized {', '.join(self.resized)}")
        if self.fresh:
            parts.append(f"not taken, so from the seed: {', '.join(self.fresh)}")
        if groups:
            parts.append("left out " + ", ".join(f"{group} ({n} tensors)" for group, n in sorted(groups.items())))
        return "; ".join(parts) + (f"\nwarning: {self.warning}" if self.warning else "")

    def for_use(self, about: dict[str, Any]) -> Loaded:
        """The same, with a warning where the log-mel that they were trained on was normalised by other numbers than
        that of what they are to be used for, as `about` says."""
        theirs, ours = statistics_in(metadata_of(self.path)), statistics_in(about)
        if theirs is None or ours is None or theirs == ours:
            return self
        then, now = (f"mean {mean:.4g} and deviation {std:.4g}" for mean, std in (theirs, ours))
        said = f"these weights were trained on log-mels of {then}, and the run goes on with those of its own, {now}"
        return replace(self, warning=f"{said}. To keep theirs, set front.mean={theirs[0]} front.std={theirs[1]}.")


def load_backbone(vit: Backbone, init: str | Path, prefix: str = "teacher.backbone.") -> Loaded:
    """Copy a saved backbone into `vit`, strictly: every tensor must be there and fit, or nothing is copied.

    Position tables of another length are interpolated, once, here. Attention pooling may be absent from the file (it
    then keeps its fresh weights), and a file's CLS token is left out of a model that has none. Where no tensor has
    `prefix`, the one backbone in the file is taken, whatever its prefix; of two, the one that is an average of weights
    (a teacher). Public checkpoints are read under their own names (`gamut.models.names`), and a ViT of images, or a
    model with another kind of positions, becomes one like `vit` (`gamut.models.origin`).

    Raises CheckpointError naming the first tensor that is missing or misshapen.
    """
    path = find_weights(init)
    state = load_weights(path)[0]
    if isinstance(vit, VisionTransformer):
        _require_kind(vit, state, path)
    return _copy_backbone(vit, our_names(state), path, prefix)


def _require_kind(vit: VisionTransformer, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raises CheckpointError for a public encoder whose tensors would fit and mean something else, or nothing."""
    if vit.model.norm != "post" and any(name.endswith(EAT_KERNELS) for name in state):
        raise CheckpointError(f"{path} is EAT or SSLAM, whose norms come after each sum: set model.norm=post.")
    if any(name.endswith(BEATS_KERNEL) for name in state):
        raise CheckpointError(
            f"{path} is BEATs, which has relative positions: set model.backbone=beats and model.pooling=mean."
        )


def load_classifier(network: ClassifierNetwork, init: str | Path, prefix: str = "backbone.") -> Loaded:
    """Copy a whole classifier, backbone, pooling and head, into `network`, strictly, as `load_backbone` does.

    Our own (a fine-tuned run's `best.safetensors`), AST's, SSAST's, ElasticAST's, or transformers' AST. The classes are
    taken to be the same, in the same order. Raises CheckpointError where the file has no classifier, or one of another
    number of classes, kind of pooling, kind of positions or stride of patches.
    """
    path = find_weights(init)
    state = our_names(load_weights(path)[0])
    prefix = backbone_prefix(state, prefix, path)
    above = "".join(prefix.removesuffix(".").rpartition(".")[:2])
    head = network.head.state_dict()
    names = {name: f"{above}head.{name}" for name in head}
    lacking = next((full for full in names.values() if full not in state), None)
    if lacking:
        raise CheckpointError(f"{path} has no classifier: no tensor {lacking}. Only its backbone can be taken (init).")
    theirs = {name: state[full] for name, full in names.items()}
    hint = "it was trained on other classes, or is of another size"
    require_fit(head, theirs, path, hint, prefix=f"{above}head.", mine_has="this classifier's has")
    own = network.backbone.state_dict()
    for part, key in KINDS.items():
        there = any(name.startswith(prefix + part) for name in state)
        if there != any(name.startswith(part) for name in own):
            raise CheckpointError(
                f"{path} has {'a' if there else 'no'} {part}, unlike this model: set {key} to what it was trained with."
            )
    vit = network.backbone
    name = f"{prefix}pos_embed" if "pos_embed" in own else f"{prefix}pos_embed_freq"
    cells = state[name].shape[-2] - (vit.special if "pos_embed" in own else 0) if name in state else vit.bands
    if cells % vit.bands:
        raise CheckpointError(
            f"{name} in {path} is for {cells} patches, which are not {vit.bands} over frequency: set model.stride to "
            "what it was trained with."
        )
    loaded = _copy_backbone(network.backbone, state, path, prefix)
    copy_into(head, theirs)
    dropped = tuple(name for name in loaded.dropped if name not in names.values())
    return replace(loaded, dropped=dropped, what="backbone and classifier")


def _copy_backbone(vit: Backbone, state: dict[str, torch.Tensor], path: Path, prefix: str) -> Loaded:
    prefix = backbone_prefix(state, prefix, path)
    before = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    saved, note = as_ours(before, prefix, vit, path) if isinstance(vit, VisionTransformer) else (before, "")
    used = {prefix + name for name in before} - {prefix + name for name in saved}  # what became something else
    own = vit.state_dict()
    fresh = tuple(name for name in own if name.startswith("attn_pool.") and name not in saved)
    # The model's own kind of part, but one it lacks (a deeper block), is a mismatch; other parts (heads) are left out.
    parts = {name.split(".")[0] for name in own} - {"attn_pool"}
    unknown = [name for name in saved if name not in own and name.split(".")[0] in parts]
    taken = used | {prefix + name for name in own}
    dropped = tuple(name for name in state if name not in taken)
    wanted = {name: mine for name, mine in own.items() if name not in fresh}
    fitted = {name: tensor for name, tensor in saved.items() if name in wanted or name in unknown}
    hint = "use the model section that it was trained with"
    lacking = "its model is of another kind than this recipe's"
    require_fit(wanted, fitted, path, hint, prefix=prefix, named=before, lacking=lacking)
    copy_into(wanted, fitted)
    tables = [name for name in wanted if name.startswith("pos_embed") and name in before]
    resized = tuple(name for name in tables if fitted[name].shape != before[name].shape)
    return Loaded(path, prefix, resized, fresh, dropped, note)


def backbone_prefix(state: dict[str, torch.Tensor], wanted: str, path: Path) -> str:
    """What stands before the names of a file's one backbone, `wanted` where that is there. Raises CheckpointError."""
    found = sorted(name.removesuffix(ANCHOR) for name in state if name.endswith(ANCHOR))
    ours = [one for one in (wanted, *OURS) if any(name.startswith(one) for name in state)]
    if wanted in found or (ours and not found):  # the latter: a backbone that is no vision transformer
        return wanted if wanted in found else ours[0]
    averaged = [one for one in found if AVERAGED & set(one.split("."))]
    if len(found) == 1 or len(averaged) == 1:
        return (averaged or found)[0]
    there = f"it has those of {', '.join(found)}" if found else "it has none"
    raise CheckpointError(
        f"{path} has no backbone under {wanted}*: {there}. Give a file with one vision transformer in it."
    )
