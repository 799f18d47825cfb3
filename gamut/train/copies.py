"""Checkpoints in a second place as well (`checkpoint.copy_to`), for the day on which the first is gone.

A thread of rank 0 copies the newest one when it is published; while it is busy, those between are left out. A copy is
written as a checkpoint is: under a temporary name, each file hashed and compared with the manifest, synced, renamed. It
never ends a run: a place that cannot be written is told, and tried again with the next checkpoint.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gamut import files
from gamut.errors import CheckpointError
from gamut.recipe.schema import Recipe
from gamut.track.checkpoints import (
    KEPT,
    LATEST,
    MANIFEST,
    SAVING,
    Checkpoints,
    discard,
    read_manifest,
    remove_leftovers,
    step_of,
)

CHUNK = 1 << 24  # bytes read at a time


def copies_of(recipe: Recipe) -> Checkpoints | None:
    """Where the copies of the recipe's run lie, made or not; None where there are to be none."""
    place = recipe.checkpoint.copy_to
    return Checkpoints(Path(place).expanduser() / recipe.run.name / "checkpoints") if place else None


class Copies:
    """The copies of one run. For rank 0 alone."""

    def __init__(self, source: Checkpoints, target: Checkpoints, keep: int) -> None:
        self.source, self.target, self.keep = source, target, keep
        self._turn = threading.Lock()
        self._wanted: Path | None = None
        self._thread: threading.Thread | None = None

    def begin(self, newest: Path) -> None:
        """Have this checkpoint copied, in the place of one that still waits for its turn."""
        with self._turn:
            self._wanted = newest
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
                self._thread.start()

    def finish(self, patience: float | None = None) -> None:
        """Wait for the newest to be there, at most so many seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(patience)
            if thread.is_alive():
                print(
                    f"warning: {self.target.folder} has not got the newest checkpoint: the run ends first.", flush=True
                )

    def forget(self, step: int) -> None:
        """Remove the copies of checkpoints after a step, which the run goes back behind. Raises OSError."""
        with self._turn:
            self._wanted = None
        self.finish()
        for later in self.target.saved():
            if step_of(later) > step:
                discard(later)

    def _run(self) -> None:
        while True:
            with self._turn:
                newest, self._wanted = self._wanted, None
                if newest is None:
                    self._thread = None
                    return
            try:
                self._copy(newest)
            except (OSError, CheckpointError) as error:
                if newest.is_dir():  # else it is one of those that are not kept, and a newer one is there
                    print(f"warning: {newest} is not copied to {self.target.folder}: {error}", flush=True)

    def _copy(self, newest: Path) -> None:
        if not self.target.place(step_of(newest)).is_dir():
            copy(newest, self.target)
        kept = self.source.noted()
        if kept:
            files.write_json(self.target.folder / KEPT, kept)
        for old in self.target.saved()[self.keep :]:
            if old.name not in kept:
                discard(old)


def copy(path: Path, target: Checkpoints) -> Path:
    """Copy a checkpoint folder, whole or not at all: its folder there, which is then the newest.

    Raises CheckpointError where a file is not as its manifest says, OSError as the system does.
    """
    entries = read_manifest(path)["files"]
    target.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_leftovers(target.folder)
    temporary, final = target.folder / f"{SAVING}{path.name}", target.folder / path.name
    temporary.mkdir(mode=0o700)
    folders = {temporary}
    for name, entry in entries.items():
        place = temporary / name
        place.parent.mkdir(mode=0o700, exist_ok=True)
        folders.add(place.parent)
        with open(path / name, "rb") as file:
            written = files.write_hashed(place, partial(_pour, file))
        if written != {"sha256": entry["sha256"], "size": entry["size"]}:
            raise CheckpointError(f"The checkpoint file {path / name} is damaged: it is not what the manifest says.")
    files.write_bytes(temporary / MANIFEST, (path / MANIFEST).read_bytes())
    for folder in folders:
        files.sync(folder)
    files.rename_folder(temporary, final)
    files.write_text(target.folder / LATEST, f"{final.name}\n")
    return final


def _pour(file: BinaryIO, out: files.Hashed) -> None:
    while data := file.read(CHUNK):
        out.write(data)
