"""What lies under a folder, asked of folders and never file by file: two million stats take hours on a network disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import soundfile

from gamut.audio.ffmpeg import SUFFIXES as FFMPEG
from gamut.errors import ShardError

# RAW has no header; the others are what libsndfile reads, by the endings that people give them.
SOUNDFILE = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {
    ".aif", ".aifc", ".snd", ".oga", ".opus", ".mp2", ".wave", ".sph", ".8svx", ".iff"
}  # fmt: skip
SOUND = SOUNDFILE | FFMPEG
# Of several files of one clip the first of these is taken, so what was never compressed comes first.
PREFERRED = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".mp4", ".mkv")


def walk(folder: Path, ignored: Counter[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(relative folder, names of its files) for all folders below, both in order; links to folders are followed once.

    The first is `""`. Hidden names are passed over; these and the links not followed again are counted in `ignored`.
    Raises ShardError where a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ShardError(f"{error.filename} cannot be listed: {error.strerror}.") from error

    linked: set[str] = set()
    ignored = Counter() if ignored is None else ignored
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        ignored["hidden"] += sum(name.startswith(".") for name in (*folders, *files))
        seen = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in seen if _first_time(place, name, linked)]
        ignored["links to a folder that is read already"] += len(seen) - len(folders)
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
