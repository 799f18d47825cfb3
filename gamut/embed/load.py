"""From what a person names to a model that embeds and tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gamut.accelerator import accelerator
from gamut.embed.model import Model, Window
from gamut.errors import CheckpointError, RecipeError
from gamut.features.encoders import ENCODERS, AnyLength, OfSpectrograms, OfWhisper, kind_of
from gamut.models.find import find_weights, metadata_of
from gamut.models.shipped import located, shipped
from gamut.models.whisper import PRECISIONS, is_whisper, load_whisper
from gamut.numbers import PATCH, RATE, WINDOW
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy
from gamut.shards.opened import Opened, open_spectrograms
from gamut.tag.choose import device_named, read_labels, spectrograms
from gamut.tag.choose import load as load_tagger
from gamut.tag.spectrogram import longest
from gamut.tag.speech import Speech

LONGEST = 30.0  # seconds of a window of encoders that read any length, at a cost that grows with its square
WHISPER, SPECTROGRAMS = "whisper", "spectrogram transformer"  # names in ENCODERS


def load(
    place: str | Path,
    *,
    head: str | Path | None = None,
    encoder: str | Path | None = None,
    labels: str | Path | Sequence[str] | None = None,
    text: bool = False,
    window: float | None = None,
    model: Mapping[str, Any] | None = None,
    normalise: tuple[float, float] | None = None,
    architecture: str = "",
    precision: str | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """A model for embeddings and, where it has classes, for tags.

    place: a run of pretraining or fine-tuning, one of its rounds, checkpoints or files of weights; an exported folder;
    a public AST, SSAST, ASiT, ElasticAST, BEATs, EAT, SSLAM, AudioMAE, Dasheng or M2D (a file, or a folder of
    transformers); a Whisper (a folder of transformers, an OpenAI .pt); HuBERT or wav2vec2 (a folder of transformers, or
    torchaudio's weights with their `architecture`, such as hubert_base); or the name of a model that comes with Gamut.

    head, encoder, text: as in `gamut.tag.load`, of a Whisper. labels: class names where the weights do not say them: a
    sequence, or a file. model: keys of the model section of public weights that their tensors do not tell, such as
    {"heads": 12}. normalise: (mean, deviation) of the log-mel, instead of the weights' own.

    window: every sound is read in windows of so many seconds, the last followed by silence, as `gamut features extract`
    reads its first (`extract.seconds`). None: as the model is meant to be used. Whisper: 30 s, filled up; with a head
    the head's. A fine-tuned run: as it is scored, whole where it reads any length. A pretraining, ElasticAST and ASiT:
    sounds at their own length, up to 30 s (`probe.max_seconds`); AST, SSAST: filled up to their table. HuBERT,
    wav2vec2, BEATs and the other public encoders: at their own length, up to 30 s, as docs/features.md has it.

    precision: fp32, bf16 or fp16 (None: the run's, or fp32). device: None for a GPU where there is one.

    Raises CheckpointError or RecipeError where there is no such model, or something must be given besides.

    >>> load("models/whisper-tiny").embed("clip.wav", level="frame")[0].values.shape      # doctest: +SKIP
    (250, 384)
    """
    path = located(place)
    on = device_named(device or accelerator())
    if not path.exists():
        raise CheckpointError(
            f"There is nothing at {path}: no such file or folder, and no model of that name comes with Gamut, only "
            f"{', '.join(shipped())}."
        )
    if window is not None and not 0.1 <= window <= 600:
        raise RecipeError(f"A window is of 0.1 to 600 s, not of {window:g} s.")
    extract = schema.Extract(seconds=window or LONGEST, architecture=architecture)
    front = None if normalise is None else schema.FrontEnd(*normalise)
    recipe = schema.Recipe(stage="features", init=str(path), extract=extract, precision=precision or "fp32")
    recipe = recipe if front is None else replace(recipe, front=front)
    kind = kind_of(path, recipe)
    of_whisper = kind == WHISPER or (kind == SPECTROGRAMS and "head" in metadata_of(find_weights(path)))
    if (head or encoder or text) and not of_whisper:
        raise RecipeError(f"{path} is no Whisper and no head of one: it has no text, no head and no encoder apart.")
    if (model or normalise) and kind != SPECTROGRAMS:
        raise RecipeError(f"`model` and `normalise` are of a model on this package's log-mel, and {path} is none.")
    if of_whisper:
        return _speech(path, window, precision, on, head=head, encoder=encoder, labels=labels, text=text)
    if kind != SPECTROGRAMS:
        encodes = ENCODERS[kind].load(path, recipe, on)
        cut = Window(round(extract.seconds * RATE))
        if window is None and isinstance(encodes, AnyLength):
            cut = replace(cut, least=encodes.least, filled=False)
        return Model(encodes, cut, None, str(path), str(path), on)
    names = read_labels(Path(labels).expanduser()) if isinstance(labels, (str, Path)) else labels
    return _of_spectrograms(open_spectrograms(path, names, model, front), window, precision, on)


def _speech(
    path: Path, window: float | None, precision: str | None, device: torch.device, labels: Any, **options: Any
) -> Model:
    """A Whisper, with a head, its text or neither; or a head's run."""
    alone = is_whisper(path) or path.suffix == ".pt"
    tagger: Speech | None = None
    if alone and options["head"] is None and not options["text"]:
        whisper = load_whisper(path, precision=precision or "fp32", device=device)
    else:
        if labels is not None and not isinstance(labels, (str, Path)):
            raise RecipeError("The labels of a head are given as a file: a name a line, or a CSV.")
        loaded = load_tagger(path, precision=precision, device=device, labels=labels, **options)
        assert isinstance(loaded, Speech)
        tagger, whisper = loaded, loaded.whisper
    head = None if tagger is None else tagger.head
    own = whisper.longest if head is None else min(head.seconds, whisper.longest)
    kind = next(name for name, dtype in PRECISIONS.items() if dtype == whisper.encoder.conv1.weight.dtype)
    pad_with = "silence" if head is None else head.pad_with
    encoder = OfWhisper(whisper, window or own, kind, device, pad_with)
    weights = (tagger.weights if tagger else "") or str(path)
    return Model(encoder, Window(encoder.samples), tagger, f"The Whisper of {path}", weights, device)


def _of_spectrograms(opened: Opened, window: float | None, precision: str | None, device: torch.device) -> Model:
    recipe = replace(opened.recipe, precision=precision or opened.recipe.precision)
    opened = replace(opened, recipe=recipe)
    tagger = spectrograms(opened, device) if opened.labels else None
    policy, views = evaluation_policy(recipe), recipe.views
    (hop,), (pool,) = policy.hops, policy.pools
    least = (PATCH * pool - 1) * hop + WINDOW
    seconds = window or longest(recipe)
    encoder = OfSpectrograms(
        opened.backbone, recipe.front, hop, seconds, recipe.precision, device,
        plan=None if window else policy, pad_with="silence" if window else views.pad_with,
    )  # fmt: skip
    filled = window is not None or bool(policy.crop_frames and policy.pad) or policy.pad_to is not None
    cut = Window(round(seconds * RATE), least, filled)
    return Model(encoder, cut, tagger, opened.what, opened.weights, device)
