"""The files under a folder, from listings alone: two million calls of stat take hours on a network disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gamut.audio.kinds import suffix_of
from gamut.errors import ShardError
from gamut.shards.convert.source import slashed

# The order of preference among several files of one clip: uncompressed formats come first.
PREFERRED = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".mp4", ".mkv")


def walk(folder: Path, ignored: Counter[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(relative folder, names of its files) for all folders below, both sorted; links to folders are followed once.

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
        ignored["links to a folder that was read already"] += len(seen) - len(folders)
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


def preference(path: str) -> tuple[int, str]:
    """A key to sort the files of one clip by, with the preferred file first."""
    suffix = suffix_of(path)
    return (PREFERRED.index(suffix) if suffix in PREFERRED else len(PREFERRED), path)


def find_one(folder: Path, name: str, about: str) -> Path:
    """The file of this name in `folder`, or else the least deep below it. Raises ShardError where there is none."""
    if (folder / name).is_file():
        return folder / name  # found without the walk, which takes long
    found = [(place.count("/"), place) for place, files in walk(folder) if name in files]
    if not found:
        raise ShardError(f"{folder} has no {name} in it. {about}")
    return folder / min(found)[1] / name


class Folders:
    """The files of folders; each folder is listed once, when it is first asked for."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[str]] = {}

    def find(self, path: str | Path) -> str | None:
        """The path as it is on disk: `a\\x.wav` also finds `a/x.WAV`. None where there is no such file.

        >>> Folders().find("/no/such/file.wav") is None
        True
        """
        folder, name = os.path.split(path)
        if name in self._names(folder):
            return str(path)
        if "\\" in str(path):
            return self.find(slashed(str(path)))
        stem, suffix = os.path.splitext(name)
        for other in (suffix.upper(), suffix.lower()):
            if stem + other in self._names(folder):
                return os.path.join(folder, stem + other)
        return None

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._known:
            try:
                self._known[folder] = frozenset(os.listdir(folder or "."))
            except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a NUL, which no name has
                self._known[folder] = frozenset()
            except OSError as error:  # a fault of the storage: the file must not count as missing
                raise ShardError(f"{folder} cannot be listed: {error.strerror}.") from error
        return self._known[folder]
