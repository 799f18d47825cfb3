"""From what a person names to what tags: a fine-tuning run, a head with its encoder, or a Whisper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gamut.accelerator import accelerator
from gamut.errors import CheckpointError, RecipeError, ShardError
from gamut.models.find import ENCODER as EXPORTED
from gamut.models.find import MODEL, find_weights, metadata_of, thresholds_in, told
from gamut.models.folder import CONFIG
from gamut.models.shipped import located, shipped
from gamut.models.strict import take_strictly
from gamut.models.tagger import Tagger, load_tagger, open_tagger
from gamut.models.weights import load_weights
from gamut.models.whisper import Whisper, is_whisper, load_whisper
from gamut.recipe import schema
from gamut.shards.labels import read_classes
from gamut.shards.opened import Opened, open_spectrograms
from gamut.tag.events import Events
from gamut.tag.spectrogram import Spectrograms
from gamut.tag.speech import Head, Speech
from gamut.tag.units import UNIT
from gamut.track.run import RunFolder

ENCODER = "whisper.encoder."  # names of the tensors of a run that trained its encoder too


def load(
    model: str | Path,
    *,
    head: str | Path | None = None,
    encoder: str | Path | None = None,
    labels: str | Path | None = None,
    text: bool = False,
    precision: str | None = None,
    device: str | torch.device | None = None,
) -> Speech | Spectrograms:
    """What tags recordings.

    model: a fine-tuning run, one of its rounds, or what was exported of one, of sound or of a head on Whisper's
    features; the name of one that comes with Gamut; or a Whisper (a folder of transformers, an OpenAI .pt). head: a
    head for that Whisper: a run, or a file, ours or of the public whisper-at package. encoder: the Whisper that a run's
    head reads, or, where the run trained that too, began with (None: where the run found it, or the one that was
    exported with it). labels: class names, for a head that does not know them (a name a line, or AudioSet's
    class_labels_indices.csv). text: load the decoder too. precision: fp32, bf16, fp16 (None: the one of the features
    that the head was trained on, else fp32). device: None for a GPU where there is one.

    Raises CheckpointError or RecipeError where these do not belong together.

    >>> load("runs/esc50/test-1-seed-0").tag([Recording("clip.wav")])      # doctest: +SKIP
    """
    place = located(model)
    on = device_named(device or accelerator())
    if (place.is_dir() and is_whisper(place)) or place.suffix == ".pt":
        return _speech(place, head, labels, text, precision, on)
    found = _of_run(place)
    about = metadata_of(found)
    if "head" in about:
        beside = found.parent / EXPORTED
        if text and encoder is None and beside.is_dir():
            raise RecipeError(
                f"{place} was exported with the encoder of its Whisper alone, which writes no text: name the whole "
                "Whisper with --encoder (encoder= in Python)."
            )
        encoder = encoder or (beside if beside.is_dir() else about["encoder"]["name"] if _end_to_end(about) else None)
        if encoder is None:
            raise RecipeError(
                f"The run {place} is of a head on the features of an encoder: say where that is, with --encoder "
                "(encoder= in Python)."
            )
        return _speech(Path(encoder).expanduser(), found, labels, text, precision, on)
    if text or head or encoder:
        raise RecipeError(f"{place} is a model of spectrograms: it has no text, no head apart and no encoder apart.")
    names = read_labels(Path(labels).expanduser()) if labels else None
    return spectrograms(open_spectrograms(found, names), on)


def device_named(name: str | torch.device) -> torch.device:
    """Raises RecipeError where it is not available here."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either where it is built without CUDA
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RecipeError(f"--device {name} is not available here ({first}): use cpu, cuda or cuda:1.") from None


def _of_run(place: Path) -> Path:
    """The weights of a run's only round, of the round or exported folder that is named; or the file that is."""
    there = RunFolder.rounds(place) or RunFolder.inside(place)
    if not place.is_file() and not there and not (place / MODEL).is_file():
        raise CheckpointError(
            f"There is nothing that tags at {place}: name a fine-tuning run, an exported folder (with {MODEL}), a "
            f"Whisper (a folder with {CONFIG}, or a .pt), or a model that comes with Gamut ({', '.join(shipped())})."
        )
    return find_weights(place)


def spectrograms(opened: Opened, device: torch.device) -> Spectrograms:
    """What tags with a model of spectrograms. Raises CheckpointError where it has no classes, or no names of them."""
    if opened.network is None:
        raise CheckpointError(
            f"{opened.what} has no classes: fine-tune from it first for tags, or take its embeddings "
            "(`python -m gamut.embed`, `gamut.load` in Python)."
        )
    if opened.labels is None:
        raise CheckpointError(f"{opened.what} does not say the names of its classes: give --labels FILE (labels=).")
    recipe, front = opened.recipe, opened.recipe.front
    assert front.mean is not None
    assert front.std is not None
    kind = Events if opened.network.by_frames else Spectrograms
    model = kind(
        opened.network, recipe, front.mean, front.std, opened.labels, device, opened.weights, opened.thresholds
    )
    if isinstance(model, Events):
        model.frame_thresholds = opened.frame_thresholds
    return model


def _speech(
    place: Path,
    head: str | Path | None,
    labels: str | Path | None,
    text: bool,
    precision: str | None,
    device: torch.device,
) -> Speech:
    if head is None and not text:
        raise RecipeError(
            f"{place} is a Whisper, which has no tags of its own: give it a head (--head), or ask for its text "
            "(--transcribe)."
        )
    if not place.exists():
        raise CheckpointError(f"There is no Whisper at {place}: no such folder or file.")
    file = None if head is None else find_weights(head)
    about = {} if file is None else metadata_of(file)
    trained = about.get("encoder", {})
    own = _end_to_end(about)
    if own and text:
        raise RecipeError(
            f"The run of {file} trained its encoder, which no decoder knows: it has tags and no text. For both take a "
            "head on a frozen encoder."
        )
    kind = precision or trained.get("model", {}).get("precision", "fp32")
    if trained and not own and trained.get("model", {}).get("kind") != "whisper":
        raise RecipeError(f"The head in {file} reads another encoder than Whisper, and tags can only be had of that.")
    whisper = load_whisper(place, decoder=text, precision=kind, device=device)
    if own:
        assert file is not None
        _take_encoder(whisper, file)
    made = None if file is None else _head(file, about, labels, whisper.depth, whisper.dim, device)
    return Speech(whisper, made, _tokenizer(place) if text else None, "" if file is None else told(file))


def _head(
    file: Path, about: dict[str, Any], labels: str | Path | None, depth: int, dim: int, device: torch.device
) -> Head:
    if "head" in about:
        layers, _, width = about["shape"]
        tagger = Tagger(schema.Head(**about["head"]), layers, width, len(about["labels"]))
        load_tagger(tagger, file)
    else:
        tagger = open_tagger(file, depth)
    trained = about.get("encoder", {})
    blocks = tuple(trained.get("blocks", range(depth)))
    if (tagger.layers, tagger.dim) != (len(blocks), dim) or max(blocks) >= depth:
        raise CheckpointError(
            f"The head in {file} reads {tagger.layers} layers of {tagger.dim} dimensions, and this Whisper has {depth} "
            f"of {dim}: it belongs to another one."
        )
    names = read_labels(Path(labels)) if labels else tuple(about.get("labels", ()))
    if len(names) != tagger.classes:
        told = f"{len(names)} names were given" if names else "it does not say which: give --labels FILE"
        raise CheckpointError(f"The head in {file} has {tagger.classes} classes, and {told}.")
    front, pooling = trained.get("front", trained), trained.get("pooling", {"steps": trained.get("pool", UNIT)})
    seconds, unit = float(front.get("seconds", 10.0)), int(pooling["steps"])
    # The public heads': 10 s, of 20 steps, filled up with 0.0.
    pad_with = front.get("pad_with", "silence" if trained else "zero")
    exclusive, thresholds = about.get("loss") == "ce", thresholds_in(about)
    return Head(tagger.to(device).eval(), names, exclusive, seconds, unit, blocks, pad_with, thresholds)


def _end_to_end(about: dict[str, Any]) -> bool:
    """Whether a run trained its encoder with the head: its file then has both."""
    return "pool" in about.get("encoder", {})


def _take_encoder(whisper: Whisper, file: Path) -> None:
    """Give a Whisper the weights that a run trained. Raises CheckpointError where they are of another one."""
    like = next(whisper.encoder.parameters())
    parts = {name.rpartition(ENCODER): tensor for name, tensor in load_weights(file)[0].items()}
    own = {name: tensor for (_, encoder, name), tensor in parts.items() if encoder}
    take_strictly(whisper.encoder, own, file, "its run began with another Whisper")
    whisper.encoder.to(like)


def _tokenizer(place: Path) -> Any:
    if place.is_file():
        raise RecipeError(
            f"{place} has no tokenizer, so its text cannot be written: use a folder that transformers wrote (of the "
            "same weights: transformers' convert_openai_to_hf)."
        )
    from transformers import WhisperTokenizer

    try:
        return WhisperTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{place} has no tokenizer of Whisper's ({error}).") from None


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names: a name a line, or a CSV with a column display_name. Raises RecipeError."""
    try:
        return tuple(read_classes(path)[0])
    except ShardError as error:
        raise RecipeError(f"The class names cannot be taken: {error}") from error


def classes_among(wanted: Sequence[str], labels: Sequence[str]) -> np.ndarray | None:
    """Ids of the named classes, int64; None: all. Upper and lower case are alike; a word that is no class may be
    several, with commas between them. Raises RecipeError for a name that is no class.

    >>> classes_among(["Male speech, man speaking", "dog, rain"], ["Rain", "Dog", "Male speech, man speaking"])
    array([0, 1, 2])
    """
    known = {name.lower(): number for number, name in enumerate(labels)}
    split = [[word] if word.strip().lower() in known else word.split(",") for word in wanted]
    named = [name.strip() for names in split for name in names if name.strip()]
    if not named:
        return None
    for name in named:
        if name.lower() not in known:
            near = [one for one in labels if name.lower() in one.lower()][:3]
            hint = f"Near it: {', '.join(near)}." if near else f"There are {len(labels)}, such as {labels[0]}."
            raise RecipeError(f"There is no class {name!r}. {hint}")
    return np.array(sorted({known[name.lower()] for name in named}), np.int64)
