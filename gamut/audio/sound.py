"""One way from a file or its bytes to samples, for conversion, indexing, training, tags and embeddings alike.

What a file is, its content says: libsndfile reads what it opens, and what it does not open goes through ffmpeg, where
that is installed. What has an ending of `gamut.audio.kinds.FFMPEG` goes there at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from gamut.audio.blocks import FFMPEG, Blocks, UnreadableError, Way, blocks, opened
from gamut.audio.ffmpeg import RefusedError, by_ffmpeg, has_ffmpeg
from gamut.audio.kinds import needs_ffmpeg
from gamut.audio.longest import Longest


def sound(source: Path | bytes, name: str, longest: Longest, way: Way | None = None) -> Blocks:
    """The whole of a file or of its bytes, block by block; `way` is filled in.

    Raises AudioError (see `gamut.audio.decode`), OSError where the file cannot be read, ShardError where its ending
    needs ffmpeg and there is none, or ffmpeg was killed or found no room.
    """
    refused = None
    if not by_ending(source):
        try:
            # At once: over a network that is faster than the many small reads of a decoder.
            payload = source if isinstance(source, bytes) else source.read_bytes()
            yield from blocks(payload, name, longest, way)
            return
        except UnreadableError as error:
            refused = error
    yield from from_ffmpeg(source, name, longest, way, refused)


def by_ending(source: Path | bytes) -> bool:
    """Whether a file is one that only ffmpeg reads, by its name."""
    return isinstance(source, Path) and needs_ffmpeg(source)


def readable(path: Path, folder: Callable[[], Path], longest: Longest, way: Way) -> Path:
    """A file that `blocks` reads, as often as asked: `path`, or what ffmpeg makes of it in `folder()`. Raises as
    `sound` does before its first block."""
    refused = None
    if not by_ending(path):
        try:
            with opened(path, str(path)):
                return path
        except UnreadableError as error:
            refused = error
    return _converted(path, str(path), folder, longest, way, refused)


def from_ffmpeg(
    source: Path | bytes, name: str, longest: Longest, way: Way | None = None, refused: UnreadableError | None = None,
    start: float = 0.0, end: float | None = None,
) -> Blocks:  # fmt: skip
    """What libsndfile does not read, or [start, end) in seconds of it. refused: what libsndfile said of it, if asked.

    Raises as `sound`."""
    with tempfile.TemporaryDirectory(prefix="gamut-ffmpeg-") as folder:
        made = _converted(source, name, lambda: Path(folder), longest, way, refused, start, end)
        yield from blocks(made, name, longest)


def _converted(
    source: Path | bytes, name: str, folder: Callable[[], Path], longest: Longest, way: Way | None,
    refused: UnreadableError | None,
    start: float = 0.0, end: float | None = None,
) -> Path:  # fmt: skip
    if refused is not None and not has_ffmpeg():
        raise UnreadableError(f"{refused} ffmpeg, which may know it, is not on the PATH.") from refused
    if way is not None:
        way.reader = FFMPEG
    try:
        return by_ffmpeg(source, name, folder(), longest, start, end)
    except RefusedError as error:
        if refused is None:
            raise
        raise UnreadableError(f"{refused} Nor does ffmpeg read it.") from error
