"""What is embedded so far, beside the file that it will be: so that a command that was stopped goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gamut.embed.model import Embedded
from gamut.errors import FeatureError
from gamut.files import TEMPORARY, UNSOUND, lock, write_bytes

ENDING = ".parts"  # of the folder, after the name of the file
ABOUT = "about.json"
FILES, BYTES, SECONDS = 256, 1 << 26, 30.0  # a part is written at so many files or bytes, or after that time


@dataclass(frozen=True)
class Place:
    """Where the rows of a file are."""

    part: Path
    first: int
    rows: int


class Parts:
    """Embeddings of files as they come, in a folder beside the file `out` that they will be. Used in a `with`.

    A part is a safetensors file of some files' rows: `values` [rows, ...] and, but for clips, `times` [rows]. What a
    killed process had not written is lost, half a minute at most; what the folder has is found again, file by file, as
    long as the file's size and time are the same.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        """about: what decides the numbers, `level` among it.

        Entering it raises FeatureError where the folder holds other embeddings, is at work in another process, or
        cannot be written.
        """
        self.folder, self._about = out.with_name(out.name + ENDING), json.loads(json.dumps(about))
        self._out = out
        self._done: dict[str, tuple[list[int], Place]] = {}  # by absolute path: size and time, and where it is
        self._waiting: list[tuple[list[Any], np.ndarray, np.ndarray | None]] = []  # a file's entry, values and times
        self._written = time.monotonic()

    def __enter__(self) -> Parts:
        self._held = contextlib.ExitStack()
        try:
            self.folder.mkdir(exist_ok=True)
            if not self._held.enter_context(lock(self.folder / "lock", wait=False)):
                raise FeatureError(f"Another process is embedding into {self._out}: wait for it, or name another file.")
        except OSError as error:
            raise FeatureError(f"{self._out} cannot be written: {error.strerror or error}.") from error
        with self._held.pop_all() as held:
            self._open()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _open(self) -> None:
        for left in self.folder.glob(f"*{TEMPORARY}"):
            left.unlink(missing_ok=True)
        about = self.folder / ABOUT
        try:
            there = json.loads(about.read_bytes())
        except FileNotFoundError:
            there = self._about
            write_bytes(about, json.dumps(there, indent=1).encode(), FeatureError)
            there.keys()
        except (OSError, *UNSOUND) as error:
            raise FeatureError(f"{about} is damaged ({error}): remove {self.folder} to begin again.") from error
        if there != self._about:
            keys = [key for key in self._about if there.get(key) != self._about[key]] or ["more"]
            raise FeatureError(
                f"{self.folder} holds what another command has embedded so far ({', '.join(keys)} differ): go on with "
                "that one, name another file, or remove the folder."
            )
        for part in sorted(self.folder.glob("*.safetensors")):
            self._take(part)

    def _take(self, part: Path) -> None:
        try:
            with safe_open(part, "np") as file:
                entries = json.loads(file.metadata()["files"])
            taken, first = {}, 0
            for path, mark, rows in entries:
                taken[path] = mark, Place(part, first, rows)
                first += rows
        except (SafetensorError, OSError, *UNSOUND):
            part.unlink(missing_ok=True)  # its files are embedded again
            return
        self._done |= taken

    def has(self, path: Path) -> bool:
        """Whether a file, as it is now, is embedded and written."""
        known = self._done.get(os.path.abspath(path))
        return known is not None and known[0] == _mark(path)

    def place(self, path: Path) -> Place:
        """Of a file that is written."""
        return self._done[os.path.abspath(path)][1]

    def add(self, path: Path, found: np.ndarray | Embedded) -> None:
        """What a file gave. Raises FeatureError where it cannot be written."""
        if isinstance(found, Embedded):
            values, times = found.values, found.times
            # In C order: safetensors writes an array's memory as it lies.
            values = np.ascontiguousarray(values.swapaxes(0, 1)) if self._about["level"] == "layer" else values
        else:
            values, times = found[None], None
        self._waiting.append(([os.path.abspath(path), _mark(path), len(values)], values, times))
        size = sum(values.nbytes for _, values, _ in self._waiting)
        if len(self._waiting) >= FILES or size >= BYTES or time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            entries = [entry for entry, *_ in self._waiting]
            tensors = {"values": np.concatenate([values for _, values, _ in self._waiting])}
            if self._waiting[0][2] is not None:
                tensors["times"] = np.concatenate([times for *_, times in self._waiting if times is not None])
            number = max((int(part.stem) for part in self.folder.glob("*.safetensors")), default=-1) + 1
            part = self.folder / f"{number:06d}.safetensors"
            write_bytes(part, save(tensors, {"files": json.dumps(entries)}), FeatureError)
            self._take(part)
            self._waiting = []
        self._written = time.monotonic()

    def pieces(self, paths: Sequence[Path], name: str) -> Iterator[np.ndarray]:
        """`values` or `times` of each file in this order, read as they are asked for."""
        opened: tuple[Path, Any] | None = None
        with contextlib.ExitStack() as held:
            for path in paths:
                at = self.place(path)
                if opened is None or opened[0] != at.part:
                    held.close()
                    opened = at.part, held.enter_context(safe_open(at.part, "np"))
                yield opened[1].get_slice(name)[at.first : at.first + at.rows]

    def shape(self, path: Path) -> list[int]:
        """Of a row, such as [dim]."""
        with safe_open(self.place(path).part, "np") as file:
            return file.get_slice("values").get_shape()[1:]

    def remove(self) -> None:
        """Once all is in the file."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _mark(path: Path) -> list[int]:
    """What changes with a file."""
    try:
        now = path.stat()
    except OSError:
        return []
    return [now.st_size, now.st_mtime_ns]
