"""A network file system that shows late what other machines wrote, for processes started with `environment`."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
SIZE = 8 + 65536 * 24


class Late:
    """under: the folder that it is of; place: where the library is built; seconds: how late."""

    def __init__(self, under: Path, place: Path, seconds: float) -> None:
        self._library, self._table = place / "late.so", place / "late"
        self._under, self._seconds = under.resolve(), seconds
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", self._library, SOURCE, "-ldl"], check=True)
        self._table.write_bytes(bytes(SIZE))

    def environment(self, node: int) -> dict[str, str]:
        """Of the processes of a node."""
        about = {"UNDER": self._under, "NODE": node, "TABLE": self._table, "SECONDS": self._seconds}
        return {"LD_PRELOAD": str(self._library)} | {f"LATE_{name}": str(value) for name, value in about.items()}

    @property
    def hidden(self) -> int:
        """How often something was not shown."""
        return struct.unpack("ii", self._table.read_bytes()[:8])[1]
