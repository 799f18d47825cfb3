"""From what a person names to a file of weights, and what that file says of itself."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gamut.errors import CheckpointError, RecipeError
from gamut.models.names import KERNELS
from gamut.models.shipped import located, shipped
from gamut.recipe.resolved import read_portable
from gamut.recipe.schema import Recipe
from gamut.track.checkpoints import epochs_at
from gamut.track.run import BEST, RECIPE, RunFolder

OBJECTIVE = "objective.safetensors"  # in a checkpoint folder: teacher and centres, or the mean of weights over epochs
MODEL = "model.safetensors"  # in a checkpoint folder: the model that was trained
ENCODER = "encoder"  # in an exported folder: the Whisper that its head reads, as a folder of transformers
PICKLED = "pytorch_model.bin"  # in a folder that transformers wrote
OURS = (
    "teacher.backbone.",
    "average.backbone.",
    "backbone.",
)  # where our own files have a backbone of any kind, in this order
HEAD = "mlp_layer.1.weight"  # every head on features has it, so it shows where one begins
ABOUT = "gamut"  # the one key of our files' metadata: the order of several is random, and with it a file's hash
OF_THE_BEST = ("best", "chosen_on", "thresholds", "frame_thresholds")  # what BEST alone says, or begins to
HASH = "sha256"  # in what files of ours say: of their tensors and all else that they say


def find_weights(init: str | Path) -> Path:
    """The file that `init` means: a file of weights, a checkpoint folder, a run or one of its rounds (the weights that
    `RunFolder.weights` says), a folder that `gamut export` or transformers wrote, or a model that comes with Gamut.

    Of a checkpoint it is the file with the teacher, or with the mean over epochs, where there is one, else the trained
    model. Raises CheckpointError saying what was looked for.
    """
    path = located(init)
    if path.is_file():
        _require_weights(path)
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{init}: there is no such file or folder. Name a run, a checkpoint, an exported folder, weights, "
            f"or a model that comes with Gamut: {', '.join(shipped())}."
        )
    rounds = RunFolder.rounds(path)
    if len(rounds) > 1:
        names = ", ".join(str(one.path) for one in rounds[:3])
        raise CheckpointError(f"{path} has {len(rounds)} rounds. Name one of them: {names}, ...")
    run = rounds[0] if rounds else RunFolder(path)
    if not rounds and not run.checkpoints.folder.is_dir():
        return _in_folder(path)
    found = run.weights()
    return found if found.is_file() else _in_folder(found)


def require_init(recipe: Recipe) -> None:
    """Raises CheckpointError where `init` names no weights, before anything is announced or made; not for a run that
    has begun from it: that goes on from its own checkpoints, whatever became of the weights."""
    if not recipe.init:
        return
    try:
        weights = find_weights(recipe.init)
        if weights.suffix == ".safetensors":
            _header(weights)
    except CheckpointError as error:
        begun = [run.recipe.init for run in RunFolder.rounds(RunFolder.place(recipe)) if (run.path / RECIPE).is_file()]
        if recipe.init not in begun:
            raise CheckpointError(f"init={recipe.init}: {error}") from error


def _in_folder(folder: Path) -> Path:
    for name in (OBJECTIVE, MODEL):
        path = folder / name
        if path.is_file() and any(_is_a_models(tensor) for tensor in _header(path)[0]):
            return path
    if (folder / PICKLED).is_file():
        return folder / PICKLED
    if runs := RunFolder.inside(folder):
        names = ", ".join(map(str, runs[:3])) + (", ..." if len(runs) > 3 else "")
        raise CheckpointError(f"{folder} is a folder of runs: name one of the runs in it: {names}.")
    raise CheckpointError(
        f"{folder} is neither a run nor a checkpoint with a model in it: no {OBJECTIVE} or {MODEL} there has a tensor "
        f"{KERNELS[0]} or {HEAD}."
    )


def _require_weights(file: Path) -> None:
    """Raises CheckpointError where a file is plainly of another kind, not a damaged one."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(9)
    except OSError as error:
        raise CheckpointError(f"The weights {file} cannot be read: {error.strerror}.") from error
    if file.suffix == ".safetensors" or begin[8:] == b"{" or (is_pickled(begin) and file.suffix != ".pt2"):
        return
    run = RunFolder.find(file)
    beside = (file.parent / MODEL).is_file()
    name = f"its folder, {file.parent}" if beside else f"its run, {run.path}" if run else "a run or an exported folder"
    raise CheckpointError(f"{file} is no file of weights, neither safetensors nor what torch.save wrote: name {name}.")


def is_pickled(begin: bytes) -> bool:
    """Whether a file with these first 9 bytes is what torch.save writes, now or formerly."""
    return begin[8:9] != b"{" and begin.startswith((b"PK\x03\x04", b"\x80"))


def _is_a_models(tensor: str) -> bool:
    return tensor.endswith((*KERNELS, HEAD)) or tensor.startswith(OURS)


def recipe_of(weights: Path) -> Recipe | None:
    """The recipe that a file of weights was trained by: as it says itself (an exported one), or that of the run that it
    lies in; None where neither says. Raises RecipeError where that does not fit."""
    says = undescribed(_header(weights)[1]).get("recipe") if weights.suffix == ".safetensors" else None
    if says is not None:
        return read_portable(says, weights)
    run = RunFolder.find(weights)
    return None if run is None else run.recipe


def told(weights: Path) -> str:
    """The file, and which weights of its run they are, in words: what every command says that opens a run."""
    run = RunFolder.find(weights)
    if run is None:
        return str(weights)
    if weights.name == BEST:
        about = metadata_of(weights)
        epoch = about.get("best", {}).get("epoch")
        chosen = f"epoch {epoch:g}, " if epoch else ""
        return f"{weights}, {chosen}chosen on {about.get('chosen_on', 'folds that it does not name')}"
    at = epochs_at(weights.parent)
    try:
        recipe = run.recipe
    except RecipeError:  # of another version: no reason not to take the weights
        return str(weights)
    if at is None:
        return str(weights)
    done, of_round = at[1], recipe.stage == "finetune"
    epoch = f"last epoch {done:g}" if done >= recipe.epochs else f"after epoch {done:.4g} of {recipe.epochs}"
    why = " (no validation folds)" if of_round and not recipe.folds.validation else ""
    kind = f", mean over epochs from {recipe.finetune.average_from}" if of_round else ", the teacher"
    return f"{weights}, {epoch}{why}{kind if weights.name == OBJECTIVE else ''}"


def described(about: dict[str, Any]) -> dict[str, str]:
    """The metadata of a file of weights of ours, as safetensors takes it."""
    return {ABOUT: json.dumps(about, sort_keys=True)} if about else {}


def undescribed(metadata: dict[str, str]) -> dict[str, Any]:
    """What `described` or an earlier version wrote, without the hash, or a foreign file's own strings."""
    if ABOUT in metadata:
        return {name: value for name, value in json.loads(metadata[ABOUT]).items() if name != HASH}
    return {name: _read_json(value) for name, value in metadata.items()}


def hash_in(metadata: dict[str, str]) -> str:
    """The sha256 that `described` was given; empty where there is none."""
    return json.loads(metadata[ABOUT]).get(HASH, "") if ABOUT in metadata else ""


def _read_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def metadata_of(weights: Path) -> dict[str, Any]:
    """What a file of weights says of itself: its model, classes, front end. {} where it says nothing.

    A checkpoint of fine-tuning by an earlier version says little; then what the BEST of its round says of the model.
    """
    about = undescribed(_header(weights)[1]) if weights.suffix == ".safetensors" else {}
    run = None if about.keys() & {"normalise", "front", "head"} else RunFolder.find(weights)
    if run is None or weights.name == BEST or not (run.path / BEST).is_file():
        return about
    beside = undescribed(_header(run.path / BEST)[1])
    return {name: value for name, value in beside.items() if not name.startswith(OF_THE_BEST)} | about


def statistics_in(about: dict[str, Any]) -> tuple[float, float] | None:
    """Mean and deviation that the log-mel was normalised by, as a file of weights says; None where it does not."""
    try:
        return float(about["normalise"]["mean"]), float(about["normalise"]["std"])
    except (KeyError, TypeError, ValueError):
        return None


def thresholds_in(about: dict[str, Any], name: str = "thresholds") -> tuple[float, ...] | None:
    """Of the probability of each class, chosen on validation clips; None where none were. name: `frame_thresholds` are
    those of a frame's probability."""
    return tuple(map(float, about[name])) if about.get(name) else None


def _header(path: Path) -> tuple[list[str], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}){_what_else(path)}.") from error


def _what_else(file: Path) -> str:
    """What a file that safetensors refuses seems to be, as the end of a sentence."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        size, begin = file.stat().st_size, opened.read(64)
        if begin.startswith(b"version https://git-lfs"):
            return ": it is a pointer of Git LFS, so fetch the file itself (git lfs pull)"
        if not size:
            return ": it is empty"
        if int.from_bytes(begin[:8], "little") > size:
            return f": it has {size:,} bytes and is cut off, or of another kind. Name a run, a checkpoint or weights"
    return ""
