"""What lies under a folder, asked of folders and never file by file: two million stats take hours on a network disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gamut.audio.ffmpeg import SUFFIXES as FFMPEG
from gamut.errors import ShardError
from gamut.shards.convert.folder import SUFFIXES as SOUNDFILE

SOUND = SOUNDFILE | FFMPEG
# Of several files of one clip the first of these is taken, so what was never compressed comes first.
PREFERRED = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".mp4", ".mkv")


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(relative folder, names of its files) for all folders below, both in order; links to folders are followed once.

    The first is `""`. Hidden names are passed over. Raises ShardError where a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ShardError(f"{error.filename} cannot be listed: {error.strerror}.") from error

    linked: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and _first_time(place, name, linked))
        relative = os.path.relpath(place, folder).replace(os.sep, "/")
        yield ("" if relative == "." else relative), sorted(name for name in files if not name.startswith("."))


def _first_time(place: str, name: str, linked: set[str]) -> bool:
    path = os.path.join(place, name)
    if not os.path.islink(path):
        return True
    true = os.path.realpath(path)
    if true in linked or (os.path.realpath(place) + os.sep).startswith(true + os.sep):
        return False
    linked.add(true)
    return True


def is_sound(name: str) -> bool:
    """Whether a file of this name is read at all, by libsndfile or ffmpeg."""
    return os.path.splitext(name)[1].lower() in SOUND


def preference(path: str) -> tuple[int, str]:
    """Sorts the files of one clip, the one to take first."""
    suffix = os.path.splitext(path)[1].lower()
    return (PREFERRED.index(suffix) if suffix in PREFERRED else len(PREFERRED), path)


def find_one(folder: Path, *names: str, about: str) -> Path:
    """The file of one of these names that lies least deep under `folder`. Raises ShardError where there is none."""
    found = [
        (place.count("/") + bool(place), place, name)
        for place, files in walk(folder)
        for name in files
        if name in names
    ]
    if not found:
        raise ShardError(f"{folder} has no {' or '.join(names)} in it. {about}")
    _, place, name = min(found)
    return folder / place / name


class Folders:
    """The files of folders, each folder listed once, when it is first asked about."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[str]] = {}

    def find(self, path: str | Path) -> str | None:
        """The path as it lies there: `x.wav` finds `x.WAV` too. None where there is no such file.

        >>> Folders().find("/no/such/file.wav") is None
        True
        """
        folder, name = os.path.split(path)
        if name in self._names(folder):
            return str(path)
        stem, suffix = os.path.splitext(name)
        for other in (suffix.upper(), suffix.lower()):
            if stem + other in self._names(folder):
                return os.path.join(folder, stem + other)
        return None

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._known:
            try:
                self._known[folder] = frozenset(os.listdir(folder or "."))
            except (FileNotFoundError, NotADirectoryError):
                self._known[folder] = frozenset()
            except OSError as error:  # says nothing of what is there: nobody may call it missing for that
                raise ShardError(f"{folder} cannot be listed: {error.strerror}.") from error
        return self._known[folder]
