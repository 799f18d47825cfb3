"""python -m gamut.tag: what is heard in a recording, and when; with a Whisper, what is said, too."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gamut.commands import command, parser_of
from gamut.errors import AudioError, GamutError, RecipeError, ShardError

if TYPE_CHECKING:
    from gamut.tag import result
    from gamut.tag.result import Tagged

SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64"}  # and what ffmpeg reads
EXAMPLE = """examples:
  python -m gamut.tag runs/esc50/test-1-seed-0 clip.wav
  python -m gamut.tag runs/as20k recordings/ --every 10 --top 3 --format csv --out tags.csv
  python -m gamut.tag models/whisper-large --head runs/whisper_at_tltr512 talk.mp3 --every 2 --transcribe
  python -m gamut.tag models/whisper-tiny --head tiny.pt --labels class_labels_indices.csv clip.wav --classes Dog,Rain
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Tag every file; 0, or 1 where some of several could not be read."""
    arguments = _parser().parse_args(argv)

    from gamut.progress import Progress  # here: torch takes its time, and --help does without
    from gamut.tag import result
    from gamut.tag.choose import load
    from gamut.tag.recording import Recording

    files = list(_files(arguments.sounds))
    for name in ("language", "task"):
        if getattr(arguments, name) is not None and not arguments.transcribe:
            raise RecipeError(f"--{name} is of text, and none is asked for: add --transcribe, or leave it out.")
    model = load(
        arguments.model, head=arguments.head, encoder=arguments.encoder, labels=arguments.labels,
        text=arguments.transcribe, precision=arguments.precision, device=arguments.device,
    )  # fmt: skip
    if model.weights:
        print(f"weights: {model.weights}", file=sys.stderr)
    options: dict[str, Any] = {"every": arguments.every}
    if arguments.transcribe:
        options["text"] = {
            name: value for name in ("language", "task") if (value := getattr(arguments, name)) is not None
        }
    chosen: result.Choice | None = None
    failed = 0
    total = max(round(_seconds(files)), 1)
    with _output(arguments.out) as out, Progress("tagging", total, "s of sound") as progress:
        if arguments.format == "csv":
            print(",".join(result.COLUMNS), file=out)
        for batch in _batches(files, arguments.batch):
            with contextlib.ExitStack() as held:
                recordings = []
                for file in batch:
                    try:
                        recordings.append(held.enter_context(Recording(file)))
                    except (AudioError, ShardError) as error:  # a ShardError: the file needs ffmpeg
                        print(f"error: {error}", file=sys.stderr)
                        failed += 1
                for tagged in model.tag(recordings, heard=progress.add, **options) if recordings else ():
                    chosen = chosen or _choice(arguments, tagged)
                    shown = _shown(arguments.format, tagged, chosen)
                    if shown:  # a CSV of a file without a tag has no line
                        print(shown, file=out, flush=True)
    if failed == len(files):
        raise AudioError("None of the files could be read.")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("tag", __doc__, EXAMPLE)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a fine-tuning run or one of its rounds; or a Whisper: a folder of transformers, an OpenAI .pt",
    )
    parser.add_argument("sounds", metavar="FILE", nargs="+", type=Path, help="sound files, or folders of them")
    parser.add_argument("--every", type=float, metavar="S", help="a set of tags every S seconds (default: the model's)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="tags at a time (default: %(default)s)")
    parser.add_argument("--least", type=float, default=0.0, metavar="P", help="only tags of this probability or more")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME,NAME",
        help="only these classes, of which the best are shown",
    )
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="json: a line a file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="files at a time (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    speech = parser.add_argument_group("with a Whisper")
    speech.add_argument("--head", type=Path, metavar="PATH", help="a head's run or file of weights")
    speech.add_argument("--encoder", type=Path, metavar="PATH", help="the Whisper, where MODEL is a head's run")
    speech.add_argument("--labels", type=Path, metavar="FILE", help="class names of a public head: a line each, or CSV")
    speech.add_argument("--transcribe", action="store_true", help="text with timestamps, from the same encoder pass")
    speech.add_argument("--language", metavar="CODE", help="of the speech, such as en (default: it is detected)")
    speech.add_argument("--task", choices=("transcribe", "translate"), help="default: transcribe")
    speech.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: the head's features', or fp32")
    return parser


def _files(given: Sequence[Path]) -> Iterator[Path]:
    from gamut.audio.ffmpeg import SUFFIXES

    for one in given:
        if not one.is_dir():
            yield one
            continue
        inside = sorted(path for path in one.rglob("*") if path.suffix.lower() in SOUNDS | SUFFIXES and path.is_file())
        if not inside:
            raise RecipeError(f"There is no sound file in {one}.")
        yield from inside


def _batches(files: list[Path], size: int) -> Iterator[list[Path]]:
    if size < 1:
        raise RecipeError(f"--batch is {size}; it must be 1 or more.")
    for first in range(0, len(files), size):
        yield files[first : first + size]


def _choice(arguments: argparse.Namespace, tagged: Tagged) -> result.Choice:
    from gamut.tag import result
    from gamut.tag.choose import classes_among

    among = classes_among(arguments.classes, tagged.labels) if tagged.labels else None
    return result.Choice(arguments.top, among, arguments.least)


def _shown(form: str, tagged: Tagged, choice: result.Choice) -> str:
    from gamut.tag import result

    make = {"table": result.as_table, "json": result.as_json, "csv": result.as_csv}[form]
    return make(tagged, choice)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise GamutError(f"{path} cannot be written: {error.strerror or error}.") from error


def _seconds(files: list[Path]) -> float:
    """Of all files, as their headers state; what libsndfile does not read counts nothing."""
    import soundfile

    total = 0.0
    for file in files:
        with contextlib.suppress(soundfile.LibsndfileError, OSError):
            total += soundfile.info(file).duration
    return total


if __name__ == "__main__":
    sys.exit(main())
