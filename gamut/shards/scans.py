"""What tars of others were found to hold, kept until all of them are indexed: a kill loses no finished tar."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from gamut.errors import ShardError
from gamut.shards.durable import TEMPORARY, write_bytes
from gamut.shards.foreign import Found, Taking

SCANS = "scans"


@dataclass(frozen=True)
class Scans:
    """A folder with one JSON a tar.

    What is kept counts only for the same bytes, taken in the same way: `stamp` stands for a tar's bytes (`Tars.stamp`).
    """

    folder: Path
    taking: Taking

    @classmethod
    def begin(cls, index: Path, taking: Taking) -> Scans:
        """In the folder `index`; what a killed writer left half written is removed. Raises ShardError."""
        folder = index / SCANS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"*{TEMPORARY}"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise ShardError(f"{folder} cannot be written: {error.strerror or error}.") from error
        return cls(folder, taking)

    def get(self, name: str, stamp: str | None) -> Found | None:
        """What the tar `name` holds, if that is known."""
        if stamp is None:
            return None
        try:
            content = json.loads((self.folder / f"{name}.json").read_bytes())
            return Found.parse(content["found"]) if content["of"] == self._of(stamp) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, name: str, stamp: str | None, found: Found) -> None:
        """Keep what the tar `name` holds. Raises ShardError where the folder cannot be written."""
        if stamp is not None:
            content = {"of": self._of(stamp), "found": found.dump()}
            write_bytes(self.folder / f"{name}.json", json.dumps(content).encode())

    def end(self) -> None:
        """The index is written: nothing is to be kept any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, stamp: str) -> dict:
        return json.loads(json.dumps({"stamp": stamp, "taking": asdict(self.taking)}))
