"""python -m gamut.embed: vectors of recordings by any trained model, in a file that other programs read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamut.audio.longest import RECORDING, Longest
from gamut.commands import command, parser_of
from gamut.embed import LEVELS
from gamut.embed.write import ENDINGS, Table, write
from gamut.errors import AudioError, RecipeError, nearest
from gamut.tag.files import sound_files

NAMED = 3  # files that were named twice
EXAMPLE = """examples:
  python -m gamut.embed runs/asit_b recordings/ --out vectors.npz
  python -m gamut.embed models/whisper-tiny talk.mp3 --level frame --out talk.parquet
  python -m gamut.embed audioset_10_10_0.4593.pth clips/ --out clips.safetensors

The same command goes on where it was stopped: until OUT is whole, what is done lies in a folder beside it, OUT.parts. A
file that cannot be read is named, here and in OUT. Exit status: 0; 1 where some files could not be read and the others
are in OUT; 2 where there is no OUT; 130 where it was interrupted."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Embed every file; 0, or 1 where some of them could not be read."""
    arguments = _parser().parse_args(argv)
    out: Path = arguments.out
    _require_place(out)
    options = dict(_setting(word) for word in arguments.set)
    files = _once([path for path, _ in sound_files(arguments.sounds)])

    from gamut.embed.load import load  # here: torch takes its time, and --help does without
    from gamut.embed.parts import Parts
    from gamut.embed.run import embed_files

    model = load(
        arguments.model, head=arguments.head, encoder=arguments.encoder, window=arguments.window, model=options,
        architecture=arguments.architecture, precision=arguments.precision, device=arguments.device,
    )  # fmt: skip
    print(f"weights: {model.weights}", file=sys.stderr)
    level = arguments.level
    about = model.decides | {"level": level}
    with Parts(out, about) as parts:
        failed = embed_files(model, files, level, parts, arguments.longest)
        good = [path for path in files if path not in failed]
        if not good:
            parts.remove()
            raise AudioError("None of the files could be read.")
        said = {"weights": model.weights, "failed": {_text(path): why for path, why in failed.items()}}
        table = Table(
            about | said,
            [_text(path) for path in good],
            [parts.place(path).rows for path in good],
            parts.shape(good[0]),
            lambda: parts.pieces(good, "values"),
            None if level == "clip" else lambda: parts.pieces(good, "times"),
        )
        write(out, table)
        parts.remove()
    size = " x ".join(f"{length:,}" for length in (sum(table.rows), *table.shape))
    print(f"{out}: {level} embeddings of {len(good):,} files, float32 {size}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed):,} of {len(files):,} files could not be read: they are named above and there",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("embed", __doc__, EXAMPLE)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run, round, checkpoint or exported folder; a public AST, SSAST, ASiT, ElasticAST, BEATs, ...; a folder "
        "of transformers (Whisper, HuBERT, wav2vec2, AST); an OpenAI Whisper; or esc10, which comes with Gamut",
    )
    parser.add_argument("sounds", metavar="FILE", nargs="+", type=Path, help="sound files, or folders of them")
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="clip",
        help="clip: a vector a file; frame: one a step, with times; layer: likewise of every block; patch: of every "
        "patch of a spectrogram (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help=f"a new file: {', '.join(ENDINGS)}")
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="read windows of S seconds, filled up with silence, as extraction of features does (default: the model's)",
    )
    parser.add_argument(
        "--longest", type=Longest.of_hours, default=RECORDING, metavar="HOURS", help="of a file (default: %(default)s)"
    )
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: the run's, or fp32")
    parser.add_argument("--head", type=Path, metavar="PATH", help="of a Whisper: read windows as long as this head's")
    parser.add_argument("--encoder", type=Path, metavar="PATH", help="the Whisper, where MODEL is a head's run")
    parser.add_argument("--architecture", default="", metavar="NAME", help="of torchaudio's weights: hubert_base, ...")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=N", help="of a public model what its tensors do not tell: heads=12"
    )
    return parser


def _setting(word: str) -> tuple[str, Any]:
    key, _, value = word.partition("=")
    try:
        return key, int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise RecipeError(f"--set {word}: write KEY=NUMBER, such as heads=12.") from None


def _require_place(out: Path) -> None:
    """Before anything is read. Raises RecipeError."""
    if out.suffix.lower() not in ENDINGS:
        raise RecipeError(
            f"--out {out} does not say which kind of file it is to be: its ending must be one of {', '.join(ENDINGS)}"
            f"{nearest(out.suffix, list(ENDINGS))}."
        )
    if out.exists():
        raise RecipeError(f"{out} is there already: remove it, or name another file.")
    if not out.absolute().parent.is_dir():
        raise RecipeError(f"There is no folder {out.absolute().parent}: make it first.")


def _once(files: list[Path]) -> list[Path]:
    """Each file once, in their order; which were named again is said."""
    first: dict[str, Path] = {}
    again = [path for path in files if first.setdefault(os.path.abspath(path), path) is not path]
    if again:
        more = f" and {len(again) - NAMED} more" if len(again) > NAMED else ""
        print(f"named more than once, embedded once: {', '.join(map(str, again[:NAMED]))}{more}", file=sys.stderr)
    return list(first.values())


def _text(path: Path) -> str:
    """A path as text that every kind of file holds."""
    return os.fsencode(path).decode("utf-8", "replace")


if __name__ == "__main__":
    sys.exit(main())
