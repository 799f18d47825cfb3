"""A file system that is cut from its power: what was not synced is gone, and so are names in folders that were not."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path


class Volatile:
    """Notes what `os.fsync` makes durable from now on, file contents and folders' names; `cut` takes the rest away."""

    def __init__(self) -> None:
        self._files: dict[int, bytes] = {}  # inode -> content
        self._names: dict[int, dict[str, int]] = {}  # inode of a folder -> name -> inode
        self._fsync = os.fsync
        os.fsync = self._note

    def _note(self, descriptor: int) -> None:
        self._fsync(descriptor)
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            names = os.listdir(descriptor)
            self._names[about.st_ino] = {name: os.stat(name, dir_fd=descriptor).st_ino for name in names}
        else:
            self._files[about.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def cut(self, folder: Path) -> None:
        """The power goes, and comes back: what is left in `folder`, which was there before. The shim is gone too."""
        os.fsync = self._fsync
        self._lose(folder)

    def _lose(self, folder: Path) -> None:
        names = self._names.get(folder.stat().st_ino, {})
        for path in folder.iterdir():
            number = path.stat().st_ino
            if names.get(path.name) != number:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif path.is_dir():
                self._lose(path)
            else:
                path.write_bytes(self._files.get(number, b""))
