"""Many files through a model: decoded ahead, the unusable ones left out by name, what is done kept as it comes."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gamut.audio.longest import RECORDING, Longest
from gamut.embed import Level
from gamut.embed.model import BATCH, Embedded, Model
from gamut.embed.parts import Parts
from gamut.errors import AudioError, ShardError
from gamut.progress import Progress
from gamut.tag.recording import Recording

READERS = 2  # threads that decode
Unusable = AudioError | ShardError  # of one file; a ShardError: it needs ffmpeg, which is not there
UNUSABLE = (AudioError, ShardError)


def embed_files(
    model: Model, files: Sequence[Path], level: Level, parts: Parts, longest: Longest = RECORDING
) -> dict[Path, str]:
    """Embed into `parts` what is not in there yet. Returns the files that cannot be used, and why; stderr says it too.

    Raises RecipeError for a level that the model has not, FeatureError where what was embedded cannot be written.
    """
    left = [path for path in files if not parts.has(path)]
    if len(left) < len(files):
        print(f"{len(files) - len(left):,} of {len(files):,} files are done; going on", file=sys.stderr)
    failed: dict[Path, str] = {}
    try:
        with Progress("embedding", len(left), "files") as progress:
            ahead = _opened(left, longest)
            while some := list(itertools.islice(ahead, BATCH)):
                for (path, _), found in zip(some, _encoded(model, [one for _, one in some], level)):
                    if isinstance(found, UNUSABLE):
                        failed[path] = str(found)
                        print(f"error: {found}", file=sys.stderr)
                    else:
                        parts.add(path, found)
                    progress.add(1)
    finally:
        parts.flush()  # also where Ctrl-C ends it
    return failed


def _opened(files: Sequence[Path], longest: Longest) -> Iterator[tuple[Path, Recording | Unusable]]:
    """The files in their order, the next ones decoded meanwhile."""
    waiting: deque[tuple[Path, Future[Recording | Unusable]]] = deque()
    coming = iter(files)
    with ThreadPoolExecutor(READERS) as readers:
        try:
            while True:
                for path in itertools.islice(coming, 2 * BATCH - len(waiting)):
                    waiting.append((path, readers.submit(_open, path, longest)))
                if not waiting:
                    return
                path, future = waiting.popleft()
                yield path, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _open(path: Path, longest: Longest) -> Recording | Unusable:
    try:
        return Recording(path, longest)
    except UNUSABLE as error:
        return error


def _encoded(
    model: Model, opened: Sequence[Recording | Unusable], level: Level
) -> list[np.ndarray | Embedded | Unusable]:
    """Of each what it gives, or why it is unusable."""
    good = [one for one in opened if isinstance(one, Recording)]
    try:
        given = iter(_some(model, good, level))
        return [next(given) if isinstance(one, Recording) else one for one in opened]
    finally:
        for one in good:
            one.close()


def _some(model: Model, good: Sequence[Recording], level: Level) -> list[np.ndarray | Embedded | Unusable]:
    try:
        return [*model.encode(good, level)]
    except UNUSABLE as error:  # one of them turns out to be damaged
        return [error] if len(good) == 1 else [found for one in good for found in _some(model, [one], level)]
