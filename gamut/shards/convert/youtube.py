"""Folders of clips cut out of YouTube videos, under any of the names that downloaders and mirrors give them.

YTID.wav                   AST, Kaggle, Hugging Face (audio/bal_train/YTID.flac)
YYTID.wav, id_YTID.wav     PANNs' archives: balanced_train_segments/Y--4gqARaEJE.wav
YTID_START.wav             seconds or milliseconds: --4gqARaEJE_0.flac, ---g-f_I2yQ_000001.mp4
YTID_START_END.wav         likewise: audiosetdl, audioset-download
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from gamut.audio.kinds import is_sound
from gamut.shards.convert.tree import preference, walk

# A file is taken for an ID before it is taken for a prefix and an ID: IDs may begin with Y.
NAME = re.compile(
    r"(?:Y|id_|v_)??(?P<id>[A-Za-z0-9_-]{11})(?:[_-](?P<start>\d+(?:\.\d+)?))?(?:[_-](?P<end>\d+(?:\.\d+)?))?"
)


def key_of_video(video: str) -> str:
    """A video's ID as the key of a clip: itself, unless it begins with `__`, as names do that WebDataset skips.

    >>> key_of_video("-_4gqARaEJE"), key_of_video("__4gqARaEJE")
    ('-_4gqARaEJE', 'Y__4gqARaEJE')
    """
    return f"Y{video}" if video.startswith("__") else video


class Downloads:
    """The clips under a folder, by video: about 300 bytes of memory a file."""

    def __init__(self, folder: Path) -> None:
        self.ignored: Counter[str] = Counter()  # why -> files passed over
        self.tables: dict[str, list[str]] = {}  # name of a CSV -> relative paths
        self._folder = folder
        self._paths: list[str] = []
        self._of: dict[str, int | list[int]] = {}  # video -> positions in `_paths`
        for place, files in walk(folder):
            for name in files:
                self._add(os.path.join(place, name), name)
        self._taken = bytearray(len(self._paths))

    def _add(self, path: str, name: str) -> None:
        stem, suffix = os.path.splitext(name)
        if suffix == ".csv":
            self.tables.setdefault(name, []).append(path)
        elif not is_sound(name):
            self.ignored[f"{suffix.lower()} files" if suffix else "files without an ending"] += 1
        elif (match := NAME.fullmatch(stem)) is None:
            self.ignored["sound files not named after a video"] += 1
        else:
            at = len(self._paths)
            self._paths.append(path)
            before = self._of.setdefault(match["id"], at)
            if isinstance(before, list):
                before.append(at)
            elif before != at:
                self._of[match["id"]] = [before, at]

    def table(self, name: str) -> Path | None:
        """The CSV of this name nearest to the top; None where there is none."""
        found = self.tables.get(name)
        return self._folder / min(found, key=lambda path: (path.count("/"), path)) if found else None

    def take(self, video: str, start: float, *, strict: bool) -> tuple[str, bool] | None:
        """(path relative to the folder, whether it was taken before) of the clip of `video` that starts at `start` s.

        A file whose name has another start is another clip; unless `strict`, it is taken where it is the only one. None
        where there is no file.
        """
        found = self._of.get(video)
        if found is None:
            return None
        candidates = [found] if isinstance(found, int) else found
        starts = {at: _start(self._paths[at]) for at in candidates}
        right = [at for at in candidates if starts[at] is not None and _same(starts[at], start)]
        right = right or [at for at in candidates if starts[at] is None] or ([] if strict else candidates)
        if not right:
            return None
        right.sort(key=lambda at: preference(self._paths[at]))
        before = self._taken[right[0]] == 1
        for at in right:
            if not self._taken[at]:
                self._taken[at] = 1 if at == right[0] else 2
        return self._paths[right[0]], before

    def rest(self) -> dict[str, int]:
        """Why -> how many files were passed over, once all clips have been taken."""
        left = {
            "sound files of clips that no table lists": self._taken.count(0),
            "further files of one clip": self._taken.count(2),
        }
        return {**self.ignored, **{why: count for why, count in left.items() if count}}


def _start(path: str) -> float | None:
    match = NAME.fullmatch(os.path.splitext(os.path.basename(path))[0])
    return None if match is None or match["start"] is None else float(match["start"])


def _same(stated: float | None, start: float) -> bool:
    """Seconds, milliseconds or seconds without their fraction."""
    return stated is not None and (abs(stated - start) < 1 or abs(stated - 1000 * start) < 1)
