"""Where the tars of a set are, and how one of them is opened."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from gamut.audio.kinds import is_sound
from gamut.errors import ShardError
from gamut.remote import Remote, is_remote
from gamut.remote.fetch import fetch, open_store
from gamut.remote.place import full, parse
from gamut.remote.store import Passing, Refused

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Tars:
    """The tars of a set: a folder or a remote place, and names in it."""

    place: str
    names: tuple[str, ...]
    remote: Remote = field(default_factory=Remote)  # how to read them where `place` is remote

    @classmethod
    def find(cls, where: str, remote: Remote | None = None) -> Tars:
        """All tars of a folder, or those that a URL or a command names. Raises ShardError where there are none, where
        one is compressed, or where the place cannot be listed."""
        remote = remote or Remote()
        place, names = parse(where) if is_remote(where) else (where, None)
        if names is None:
            names = tuple(sorted(name for name in _names(place, remote) if name.endswith((".tar", *COMPRESSED))))
        tars = cls(place, names, remote)
        for name in names:
            if name.endswith(COMPRESSED):
                raise ShardError(
                    f"{tars.full(name)} is compressed, so no clip in it can be read without everything before it. "
                    "Decompress it; compression gains nothing on audio."
                )
        if not names:
            if told := "" if is_remote(place) else holds_sounds(Path(place)):
                raise ShardError(told)
            raise ShardError(f"There are no tars in {where}. Make them: python -m gamut.shards convert --help")
        if len(set(names)) < len(names) or any(Path(name).name != name for name in names):
            raise ShardError(f"The tars in {where} must have different names, all in one folder.")
        return tars

    def only(self, number: int) -> Tars:
        """One of them."""
        return replace(self, names=(self.names[number],))

    @property
    def is_remote(self) -> bool:
        return is_remote(self.place)

    def inside(self, folder: Path) -> bool:
        """Whether they are in this folder."""
        return not self.is_remote and Path(self.place).resolve() == folder.resolve()

    def seen_from(self, folder: Path) -> str | None:
        """The place of the tars as an index in `folder` records it; None where the index is beside them.

        Raises ShardError where `folder` holds other tars, whose index would be replaced.
        """
        if self.inside(folder):
            return None
        if any(folder.glob("*.tar")):
            raise ShardError(
                f"{folder} holds other tars, whose index would be replaced by that of the tars in {self.place}. "
                "Give another folder as --out."
            )
        return self.place if self.is_remote else os.path.abspath(self.place)

    @property
    def set_name(self) -> str:
        """The default name of the set: that of its folder."""
        if not self.is_remote:
            return Path(self.place).resolve().name
        words = [part for part in re.split(r"[/\s]+", self.place.replace("{}", "")) if part and part != "-"]
        return words[-1]

    def full(self, name: str) -> str:
        """A tar's name with its place, for messages."""
        return full(self.place, name) if self.is_remote else str(Path(self.place) / name)

    def stamp(self, name: str) -> str | None:
        """What changes with a tar's bytes: size and modification time, or the server's ETag; None where unknown."""
        if not self.is_remote:
            try:
                about = os.stat(Path(self.place) / name)
            except OSError:
                return None  # `open` says what is wrong
            return f"{about.st_size} {about.st_mtime_ns}"
        if self.place.startswith("pipe:"):
            return None
        try:
            with open_store(self.place, self.remote).get(name, 0, 1, None) as answer:
                return f"{answer.size} {answer.etag}" if answer.etag else None
        except (Passing, Refused):
            return None

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A tar as a file that can be read anywhere; a remote one is fetched whole, to a file without a name.

        Raises ShardError where it cannot be read.
        """
        try:
            if self.is_remote:
                with tempfile.TemporaryFile(dir=self.remote.folder()) as file:
                    store = open_store(self.place, self.remote)
                    fetch(store, self.place, name, file, self.remote)  # type: ignore[arg-type]
                    yield file  # type: ignore[misc]
            else:
                with open(Path(self.place) / name, "rb") as file:
                    yield file
        except OSError as error:
            raise ShardError(f"{self.full(name)} cannot be read ({error.strerror or error}).") from error


def holds_sounds(folder: Path) -> str:
    """What is said of a folder with sounds where shards are asked for; empty of another. It looks at the first hundred
    entries of the folder, and of each folder in it."""
    try:
        entries = list(itertools.islice(folder.iterdir(), 100))
        inside = (one for inner in entries if inner.is_dir() for one in itertools.islice(inner.iterdir(), 100))
        kind = "folder" if any(map(is_sound, inside)) else "csv" if any(map(is_sound, entries)) else ""
    except OSError:
        return ""
    if not kind:
        return ""
    source = folder if kind == "folder" else "TABLE.csv"
    return (
        f"{folder} holds sounds, not shards. Convert them into another folder, and name that: python -m gamut.shards "
        f"convert {kind} {source} FOLDER"
    )


def _names(place: str, remote: Remote) -> list[str]:
    if is_remote(place):
        try:
            return open_store(place, remote).names()
        except (Refused, Passing) as error:
            raise ShardError(f"The tars of {place} cannot be listed: {error}.") from None
    if not Path(place).is_dir():
        raise ShardError(f"{place} is not a folder.")
    return [path.name for path in Path(place).iterdir()]
