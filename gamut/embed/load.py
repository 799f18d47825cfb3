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
from gamut.features.encoders import SHORTEST, OfPublic, OfSpectrograms, OfSpeech, OfWhisper
from gamut.models.families import find_public
from gamut.models.find import find_weights, metadata_of
from gamut.models.public import load_public
from gamut.models.speech import is_speech, load_speech
from gamut.models.whisper import is_whisper, load_whisper
from gamut.numbers import PATCH, RATE, WINDOW
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy
from gamut.shards.opened import Opened, open_spectrograms
from gamut.tag.choose import device_named, read_labels, spectrograms
from gamut.tag.choose import load as load_tagger
from gamut.tag.spectrogram import longest
from gamut.tag.speech import Speech

# Seconds of a window of encoders of any length, whose cost grows with its square: HuBERT, wav2vec2, BEATs, EAT
LONGEST = 30.0


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
    a public AST, SSAST, ASiT or ElasticAST (a file, or a folder of transformers); a Whisper (a folder of transformers,
    an OpenAI .pt); HuBERT or wav2vec2 (a folder of transformers, or torchaudio's weights with `architecture`, such
    as hubert_base); BEATs, EAT, SSLAM, AudioMAE, Dasheng or M2D (a file, or a folder of transformers).

    head, encoder, text: as in `gamut.tag.load`, of a Whisper. labels: class names where the weights do not say them: a
    sequence, or a file. model: keys of the model section of public weights that their tensors do not tell, such as
    {"heads": 12}. normalise: (mean, deviation) of the log-mel, instead of the weights' own.

    window: every sound is read in windows of so many seconds, the last followed by silence, as `gamut features extract`
    reads its first (`extract.seconds`). None: as the model is meant to be used. Whisper: 30 s, filled up; with a head
    the head's. A fine-tuned run: as it is scored, whole where it reads any length. A pretraining, ElasticAST and ASiT:
    sounds at their own length, up to 30 s (`probe.max_seconds`); AST, SSAST: filled up to their table. HuBERT,
    wav2vec2, BEATs, EAT, AudioMAE, Dasheng and M2D: at their own length, up to 30 s, as docs/features.md says.

    precision: fp32, bf16 or fp16 (None: the run's, or fp32). device: None for a GPU where there is one.

    Raises CheckpointError or RecipeError where there is no such model, or something must be given besides.

    >>> load("models/whisper-tiny").embed("clip.wav", level="frame")[0].values.shape      # doctest: +SKIP
    (250, 384)
    """
    path = Path(place).expanduser()
    on = device_named(device or accelerator())
    if not path.exists():
        raise CheckpointError(f"There is nothing at {path}: no such file or folder.")
    if window is not None and not 0.1 <= window <= 600:
        raise RecipeError(f"A window is of 0.1 to 600 s, not of {window:g} s.")
    if architecture or is_speech(path):
        return _speech(path, architecture, window, precision or "fp32", on)
    if normalise is None and model is None and not (head or text) and find_public(path) is not None:
        public = OfPublic(load_public(path, device=on), window or LONGEST, precision or "fp32", on)
        cut = Window(public.samples, 1 if window else round(SHORTEST * RATE), window is not None)
        return Model(public, cut, None, f"{path}", str(path), on)
    if (is_whisper(path) or path.suffix == ".pt") and head is None and not text:
        whisper = load_whisper(path, precision=precision or "fp32", device=on)
        encodes = OfWhisper(whisper, window or whisper.longest, precision or "fp32", on)
        return Model(encodes, Window(encodes.samples), None, f"The Whisper {path}", str(path), on)
    if is_whisper(path) or path.suffix == ".pt" or "head" in metadata_of(find_weights(path)):
        if labels is not None and not isinstance(labels, (str, Path)):
            raise RecipeError("The labels of a head are given as a file: a name a line, or a CSV.")
        options: dict[str, Any] = {"head": head, "encoder": encoder, "labels": labels, "text": text}
        tagger = load_tagger(path, precision=precision, device=on, **options)
        assert isinstance(tagger, Speech)
        return _heard(tagger, path, window, on)
    if text or head or encoder:
        raise RecipeError(f"{path} is a model of spectrograms: it has no text, no head apart and no encoder apart.")
    names = read_labels(Path(labels).expanduser()) if isinstance(labels, (str, Path)) else labels
    front = None if normalise is None else schema.FrontEnd(*normalise)
    return _of_spectrograms(open_spectrograms(path, names, model, front), window, precision, on)


def _heard(tagger: Speech, path: Path, window: float | None, device: torch.device) -> Model:
    """A Whisper with its head, its text or both."""
    whisper = tagger.whisper
    own = min(tagger.head.seconds, whisper.longest) if tagger.head else whisper.longest
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(next(whisper.parameters()).dtype, "fp32")
    encoder = OfWhisper(whisper, window or own, kind, device)
    return Model(
        encoder, Window(encoder.samples), tagger, f"The Whisper of {path}", tagger.weights or str(path), device
    )


def _speech(path: Path, architecture: str, window: float | None, precision: str, device: torch.device) -> Model:
    speech = load_speech(path, architecture, precision=precision, device=device)
    encoder = OfSpeech(speech, window or LONGEST, precision, device)
    least = 1 if window else speech.field
    return Model(encoder, Window(encoder.samples, least, window is not None), None, f"{path}", str(path), device)


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
