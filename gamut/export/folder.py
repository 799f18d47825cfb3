"""The exported folder: made whole or not at all, with the checksum of every file that a program reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gamut import files
from gamut.errors import ExportError
from gamut.models.weights import file_sha256

CARD = "README.md"
MANIFEST = "manifest.json"  # sha256 and size of each file, but for the card, in which a licence is to be filled in


def require_free(folder: Path) -> None:
    """Raises ExportError where there is something at the place of a new folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ExportError(f"{folder} {what}: name a new folder, or remove it first.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which has the name `folder` once the block has ended without an exception.

    Raises ExportError where there is something at that place, or where it cannot be written.
    """
    folder = folder.expanduser()
    require_free(folder)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}{files.TEMPORARY}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            _seal(temporary)
            if folder.is_dir():
                folder.rmdir()
            files.rename_folder(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise ExportError(files.refusal(error, folder)) from error


def _seal(folder: Path) -> None:
    """Write the manifests, one in each folder, and make all of it durable."""
    for inside in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        there = sorted(path for path in inside.iterdir() if path.is_file())
        for path in there:
            files.sync(path)
        entries = {
            path.name: {"sha256": file_sha256(path), "size": path.stat().st_size} for path in there if path.name != CARD
        }
        if entries:
            files.write_json(inside / MANIFEST, {"version": 1, "files": entries})
        files.sync(inside)
