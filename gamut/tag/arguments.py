"""What is typed of a model that tags: the same for every command that opens one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamut.errors import RecipeError

if TYPE_CHECKING:
    from gamut.tag.spectrogram import Spectrograms
    from gamut.tag.speech import Speech


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL and the options that say how it is opened."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a fine-tuning run or one of its rounds; or a Whisper: a folder of transformers, an OpenAI .pt",
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
