"""python -m gamut.export: a trained model as a folder that other programs open."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from gamut.commands import command, parser_of

FORMATS = {
    "hf": "transformers: AST with its feature extractor (a classifier with CLS and distillation token), or ViT",
    "timm": "timm: VisionTransformer (a backbone)",
    "safetensors": "Gamut: weights that say all about themselves, for tag, init and features",
    "onnx": "onnxruntime: one program from the waveform to logits and embedding, for sounds of any length",
    "torch": "torch.export: the same as a .pt2",
}
EXAMPLE = """examples:
  python -m gamut.export runs/esc50/test-1-seed-0 --to onnx exported/esc50
  python -m gamut.export runs/ast --to hf exported/ast
  python -m gamut.export runs/asit_b/checkpoints/step-00010000 --to hf exported/asit_b
  python -m gamut.export runs/elastic --to timm --backbone --seconds 10 exported/elastic
  python -m gamut.export runs/whisper_at --to onnx --encoder models/whisper-tiny exported/whisper_at
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)

    from gamut.export.write import export  # here: torch takes its time, and --help does without

    options = {"seconds": arguments.seconds, "backbone": arguments.backbone, "encoder": arguments.encoder}
    for line in export(arguments.run, arguments.to, arguments.folder, **options):
        print(line, file=sys.stderr)
    print(arguments.folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:12} {what}" for name, what in FORMATS.items())
    about = f"{__doc__.partition(': ')[2].capitalize()}\n\nformats:\n{formats}"
    parser = parser_of("export", about, EXAMPLE)
    parser.add_argument(
        "run", metavar="RUN", help="a run, one of its rounds, a checkpoint, or an exported folder (of safetensors)"
    )
    parser.add_argument("folder", metavar="DST", type=Path, help="the folder to make")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True, help="the format")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help="hf, timm: the length to lay a model out for that hears any; onnx, torch: the longest sound, cut there",
    )
    parser.add_argument("--backbone", action="store_true", help="leave the classifier out")
    parser.add_argument(
        "--encoder", metavar="WHISPER", help="the Whisper that a head reads: a folder of transformers, an OpenAI .pt"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.175 <= seconds < math.inf:  # 16 frames
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds of 0.175 or more")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
