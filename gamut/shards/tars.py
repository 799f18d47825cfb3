"""Where the tars of a set lie, and how one of them is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gamut.errors import ShardError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Tars:
    """The tars of a set: a place, and names in it, sorted."""

    place: str
    names: tuple[str, ...]

    @classmethod
    def find(cls, where: str) -> Tars:
        """All tars of a folder. Raises ShardError where there are none, or compressed ones."""
        folder = Path(where)
        if not folder.is_dir():
            raise ShardError(f"{where} is not a folder.")
        names = sorted(path.name for path in folder.iterdir() if path.name.endswith((".tar", *COMPRESSED)))
        for name in names:
            if name.endswith(COMPRESSED):
                raise ShardError(
                    f"{folder / name} is compressed, so no clip in it can be read without all that come before. "
                    "Decompress it; audio gains nothing by it."
                )
        if not names:
            raise ShardError(f"There are no tars in {where}. Make them: python -m gamut.shards convert --help")
        return cls(where, tuple(names))

    def inside(self, folder: Path) -> bool:
        """Whether they lie in this folder."""
        return Path(self.place).resolve() == folder.resolve()

    @property
    def set_name(self) -> str:
        """A name for the set, if nobody gives one."""
        return Path(self.place).resolve().name

    def full(self, name: str) -> str:
        """A tar's name with its place, for messages."""
        return str(Path(self.place) / name)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A tar as a file that can be read anywhere. Raises ShardError where it cannot be read."""
        try:
            with open(Path(self.place) / name, "rb") as file:
                yield file
        except OSError as error:
            raise ShardError(f"{self.full(name)} cannot be read ({error.strerror or error}).") from error
