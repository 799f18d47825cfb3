"""python -m gamut.tag: what is heard in a recording, and when; with a Whisper, what is said, too."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamut.audio.longest import RECORDING, Longest
from gamut.commands import command, parser_of, positive
from gamut.errors import AudioError, GamutError, RecipeError, ShardError
from gamut.files import refusal, write_bytes
from gamut.tag.arguments import add_choice, add_model, choice_of, open_model
from gamut.tag.files import sound_files
from gamut.tag.formats import FORMATS, as_lines
from gamut.tag.result import Choice

if TYPE_CHECKING:
    from gamut.tag import Tagged

INTERRUPTED = 130  # exit status
EXAMPLE = """examples:
  python -m gamut.tag runs/esc50/test-1-seed-0 clip.wav
  python -m gamut.tag runs/as20k recordings/ --every 10 --top 3 --format csv --out tags.csv
  python -m gamut.tag runs/as20k recordings/ --every 2 --top 1 --format audacity --out labels/
  python -m gamut.tag models/whisper-large --head runs/whisper_at_tltr512 talk.mp3 --every 2 --transcribe
  python -m gamut.tag models/whisper-tiny --head tiny.pt --labels class_labels_indices.csv clip.wav --classes Dog,Rain
  arecord -f S16_LE -r 16000 -c 1 -t raw | python -m gamut.tag runs/esc50/test-1-seed-0 -
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Tag every file; 0, or 1 where some of several could not be read. Of a stream 0, or 130 where Ctrl-C ended it."""
    arguments = _parser().parse_args(argv)
    streamed = "-" in arguments.sounds
    if streamed and len(arguments.sounds) > 1:
        raise RecipeError("- is standard input, which is tagged alone: leave the other files out.")
    if not streamed and (arguments.rate or arguments.channels):
        raise RecipeError(
            "--rate and --channels are of raw samples on standard input: name that as -, or leave them out."
        )
    descriptor = _standard_input() if streamed else -1
    files = {} if streamed else dict(sound_files([Path(one) for one in arguments.sounds]))
    places = {} if streamed else _places(arguments, files)
    model, options = open_model(arguments)
    choice = choice_of(arguments, model, arguments.classes)
    if streamed:
        return _stream(arguments, model, options, choice, descriptor)
    return _tag(arguments, model, options, choice, list(files), places)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("tag", __doc__, EXAMPLE)
    add_model(parser)
    parser.add_argument("sounds", metavar="FILE", nargs="+", help="sound files, folders of them, or - (standard input)")
    add_choice(parser)
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME,NAME",
        help="only these classes, of which the best are shown",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="; ".join(f"{name}: {form.about}" for name, form in FORMATS.items()) + " (default: %(default)s)",
    )
    parser.add_argument("--out", metavar="PATH", help="a file instead of the terminal; or a folder: a file for each")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="files at a time (default: %(default)s)")
    parser.add_argument(
        "--longest", type=Longest.of_hours, default=RECORDING, metavar="HOURS", help="of a file (default: %(default)s)"
    )
    raw = parser.add_argument_group("of standard input, where it is not a WAV (16-bit little-endian samples)")
    raw.add_argument("--rate", type=positive, metavar="HZ", help="default: 16000")
    raw.add_argument("--channels", type=positive, metavar="N", help="default: 1")
    return parser


def _tag(
    arguments: argparse.Namespace, model: Any, options: dict[str, Any], choice: Choice, files: list[Path],
    places: dict[Path, Path],
) -> int:  # fmt: skip
    """Files, into one or, where they have `places`, each into its own."""
    from gamut.progress import Progress

    form = FORMATS[arguments.format]
    failed: list[Path] = []
    total = max(round(_seconds(files)), 1)
    with Progress("tagging", total, "s of sound") as progress:
        tagged = _tagged(model, files, arguments.batch, arguments.longest, options, progress.add, failed)
        if not places:
            _write(arguments.out, form.write(tagged, choice))
        for one in tagged if places else ():
            _into(places[one.path], form.of(one, choice))
    if len(failed) == len(files):
        raise AudioError("None of the files could be read.")
    return 1 if failed else 0


def _tagged(
    model: Any, files: list[Path], size: int, longest: Longest, options: dict[str, Any], heard: Callable[[float], None],
    failed: list[Path],
) -> Iterator[Tagged]:  # fmt: skip
    """Those that can be read; the others are named on stderr and in `failed`."""
    from gamut.tag.recording import Recording

    for first in range(0, len(files), size):
        with contextlib.ExitStack() as held:
            recordings = []
            for file in files[first : first + size]:
                try:
                    recordings.append(held.enter_context(Recording(file, longest)))
                    if recordings[-1].way.unpatched:
                        print(f"{file} states no length: it was read to its end.", file=sys.stderr)
                except (AudioError, ShardError) as error:  # a ShardError: the file needs ffmpeg
                    print(f"error: {error}", file=sys.stderr)
                    failed.append(file)
            if recordings:
                yield from model.tag(recordings, heard=heard, **options)


def _stream(arguments: argparse.Namespace, model: Any, options: dict[str, Any], choice: Choice, descriptor: int) -> int:
    from gamut.tag.stream import Stream, interrupts

    write = as_lines if arguments.format == "table" else FORMATS[arguments.format].write
    with interrupts() as stop:
        stream = Stream(descriptor, arguments.rate, arguments.channels, stop)
        _write(arguments.out, write(model.listen(stream, **options), choice))
    if stream.lost:
        print(f"The last {stream.lost} bytes are no whole sample, and were left out.", file=sys.stderr)
    if stream.stopped:
        print(f"interrupted after {stream.seconds:.1f} s of sound", file=sys.stderr)
        return INTERRUPTED
    if not stream.samples:
        raise AudioError("There was no sound on standard input.", "empty")
    return 0


def _standard_input() -> int:
    if sys.stdin is None or sys.stdin.closed:
        raise AudioError("Standard input is closed: there is nothing to tag.", "empty")
    if sys.stdin.isatty():
        raise RecipeError("Standard input is the terminal: pipe sound into it, such as `arecord -t raw ... | ...`.")
    return os.dup(sys.stdin.fileno())


def _places(arguments: argparse.Namespace, files: dict[Path, Path]) -> dict[Path, Path]:
    """Where each file's tags go, if into files of their own; else empty. Raises RecipeError."""
    form, out = FORMATS[arguments.format], arguments.out
    if out is None or not (out.endswith("/") or Path(out).is_dir() or (len(files) > 1 and not form.together)):
        if len(files) > 1 and not form.together:
            raise RecipeError(
                f"A file of --format {arguments.format} is of one recording, and {len(files)} are given: add --out "
                "FOLDER for one each."
            )
        return {}
    if Path(out).suffix and not out.endswith("/") and not Path(out).is_dir():
        raise RecipeError(
            f"{out} ends like a file, and {len(files)} recordings need one of --format {arguments.format} each: name a "
            f"folder, or {out}/ if it is to be called that."
        )
    taken: dict[Path, Path] = {}
    for file, name in files.items():
        place = Path(out) / name.with_suffix(form.ending)
        if place in taken:
            raise RecipeError(
                f"{taken[place]} and {file} would both be written to {place}: name the folder above, or only one."
            )
        taken[place] = file
    return {file: place for place, file in taken.items()}


def _into(place: Path, text: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GamutError(f"The folder {place.parent} cannot be made: {error.strerror}.") from error
    write_bytes(place, text.encode(), GamutError)


def _write(path: str | None, pieces: Iterable[str]) -> None:
    """Each piece as it comes, to a file or to standard output."""
    if path is None:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        return
    wanted = 0
    try:
        with open(path, "w", encoding="utf-8") as file:
            for piece in pieces:
                wanted += len(piece.encode())
                file.write(piece)
                file.flush()
    except OSError as error:
        raise GamutError(refusal(error, path, wanted)) from error


def _seconds(files: list[Path]) -> float:
    """Of all files, as their headers state; what libsndfile does not read, or does not say, counts nothing."""
    from gamut.audio.blocks import frames_of, opened

    total = 0.0
    for path in files:
        with contextlib.suppress(AudioError, OSError), opened(path, str(path)) as (file, _):
            total += (frames_of(file) or 0) / file.samplerate
    return total


if __name__ == "__main__":
    sys.exit(main())
