"""Faults of a machine, for processes that are started with `environment`: what they write below a folder is slow, or
finds the disk full, or the clock goes back, while it is said to. A C library is put before the system's, so it holds
for whatever writes."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")


class Faults:
    """None at first. under: the folder they befall; place: where the library is built."""

    def __init__(self, under: Path, place: Path) -> None:
        library, control = place / "faults.so", place / "faults"
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        control.write_bytes(bytes(mmap.PAGESIZE))
        self.environment = {"LD_PRELOAD": library, "FAULTS_UNDER": under.resolve(), "FAULTS_CONTROL": control}
        with open(control, "r+b") as file:
            self._control = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def set(self, *, slow: float = 0.0, full: str = "", back: float = 0.0) -> None:
        """slow: seconds that each write, fsync and rename takes; full: `all`, or for `checkpoints` alone: of a write
        half gets through, then nothing; back: seconds by which the clock of the day is behind."""
        control = round(slow * 1e6), ["", "all", "checkpoints"].index(full), round(back)
        self._control[:12] = struct.pack("iii", *control)
