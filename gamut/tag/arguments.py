"""What is typed of a model that tags: the same for every command that opens one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gamut.commands import positive
from gamut.errors import RecipeError
from gamut.tag.result import Choice

if TYPE_CHECKING:
    from gamut.tag.spectrogram import Spectrograms
    from gamut.tag.speech import Speech


CHOSEN = "chosen"


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL and the options that say how it is opened."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a fine-tuning run or one of its rounds; esc10, which comes with Gamut; or a Whisper: a folder of "
        "transformers, an OpenAI .pt",
    )
    parser.add_argument("--every", type=float, metavar="S", help="a set of tags every S seconds (default: the model's)")
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    speech = parser.add_argument_group("with a Whisper")
    speech.add_argument("--head", type=Path, metavar="PATH", help="a head's run or file of weights")
    speech.add_argument("--encoder", type=Path, metavar="PATH", help="the Whisper, where MODEL is a head's run")
    speech.add_argument("--labels", type=Path, metavar="FILE", help="class names of a public head: a line each, or CSV")
    speech.add_argument("--transcribe", action="store_true", help="text with timestamps, from the same encoder pass")
    speech.add_argument("--language", metavar="CODE", help="of the speech, such as en (default: it is detected)")
    speech.add_argument("--task", choices=("transcribe", "translate"), help="default: transcribe")
    speech.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: the head's features', or fp32")


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that say which tags are shown."""
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="tags at a time (default: %(default)s)")
    parser.add_argument(
        "--least",
        type=_least,
        default=0.0,
        metavar="P",
        help="only tags of this probability or more; chosen: of the threshold that the run has chosen for each class",
    )


def _least(text: str) -> float | None:
    """None: those that were chosen."""
    return None if text == CHOSEN else float(text)


def choice_of(arguments: argparse.Namespace, model: Speech | Spectrograms, classes: Sequence[str] = ()) -> Choice:
    """The tags that are shown, of `classes` alone where some are named; which thresholds are used is said on stderr.
    Raises RecipeError for a class that the model does not have, and for thresholds where none were chosen."""
    from gamut.tag.choose import classes_among
    from gamut.tag.events import Events

    among = classes_among(classes, model.labels) if model.labels else None
    of_events = isinstance(model, Events) and arguments.every is None and "-" not in vars(arguments).get("sounds", ())
    if isinstance(model, Events) and of_events and model.frame_thresholds is not None:
        _tell("of the frames of each class's events", model.frame_thresholds)
        if arguments.least is None:
            return Choice(arguments.top, among)  # events have them already
    if arguments.least is not None:
        return Choice(arguments.top, among, arguments.least)
    if model.thresholds is None:
        raise RecipeError(
            f"No thresholds were chosen for {arguments.model}: a fine-tuning with folds.validation and "
            "finetune.loss=bce does that. Give --least a number."
        )
    if of_events:
        raise RecipeError(
            "The thresholds that were chosen are of whole clips, not of the frames that events are made of: add "
            "--every S, or give --least a number."
        )
    _tell("of each class", model.thresholds)
    return Choice(arguments.top, among, np.array(model.thresholds))


def _tell(of: str, chosen: Sequence[float]) -> None:
    print(f"thresholds: {of}, as chosen on validation clips, {min(chosen):.3g} to {max(chosen):.3g}", file=sys.stderr)


def open_model(arguments: argparse.Namespace) -> tuple[Speech | Spectrograms, dict[str, Any]]:
    """The model, and the options of its `tag` and `listen`; which weights it has is said on stderr."""
    from gamut.tag.choose import load  # here: torch takes its time, and --help does without

    words = {name: value for name in ("language", "task") if (value := getattr(arguments, name)) is not None}
    if words and not arguments.transcribe:
        raise RecipeError(
            f"--{next(iter(words))} is of text, and none is asked for: add --transcribe, or leave it out."
        )
    model = load(
        arguments.model, head=arguments.head, encoder=arguments.encoder, labels=arguments.labels,
        text=arguments.transcribe, precision=arguments.precision, device=arguments.device,
    )  # fmt: skip
    if model.weights:
        print(f"weights: {model.weights}", file=sys.stderr)
    return model, {"every": arguments.every} | ({"text": words} if arguments.transcribe else {})
