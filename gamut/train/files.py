"""Writing files that are whole or not there, with the hash of what was meant to be written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from gamut.errors import CheckpointError

# Called before each write, fsync and rename with its name and path. A test makes the process die there.
hook: Callable[[str, Path], None] = lambda action, path: None  # noqa: E731


class Hashed:
    """A file being written, hashed as it goes; for writers that only append (torch.save, safetensors bytes, JSON)."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        hook("write", self._path)
        data = memoryview(data).cast("B")
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def write_file(path: Path, fill: Callable[[Hashed], object]) -> dict[str, Any]:
    """Write `path` through a temporary name with fsync and rename: {"sha256", "size"} of what was written.

    Raises OSError with the path, as the system does; nothing is left under the temporary name then.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb", buffering=1 << 20) as file:
            hashed = Hashed(file, path)
            fill(hashed)
            file.flush()
            hook("fsync", path)
            os.fsync(file.fileno())
        hook("rename", path)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return {"sha256": hashed.sha256.hexdigest(), "size": hashed.size}


def write_json(path: Path, value: Any) -> dict[str, Any]:
    """Write a JSON file as `write_file` does."""
    text = json.dumps(value, indent=1, sort_keys=True).encode()
    return write_file(path, lambda file: file.write(text))


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    hook("fsync", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(source: Path, target: Path) -> None:
    """Rename a folder whose files are durable, durably."""
    sync_folder(source)
    hook("rename", target)
    os.rename(source, target)
    sync_folder(target.parent)


def read_verified(path: Path, entry: dict[str, Any]) -> bytes:
    """The bytes of a file, checked against its manifest entry before anybody interprets them.

    Raises CheckpointError naming the file: missing, another size, another hash.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"The checkpoint file {path} cannot be read ({error.strerror}).") from error
    if len(data) != entry["size"]:
        raise CheckpointError(f"The checkpoint file {path} has {len(data)} bytes instead of {entry['size']}.")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"The checkpoint file {path} is damaged: its sha256 is not that of the manifest.")
    return data


def explain(error: OSError, rank: int, needed: int) -> str:
    """A sentence about a failed write: rank, path, bytes."""
    why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return (
        f"Rank {rank} could not write the checkpoint file {error.filename or '(unnamed)'} ({needed} bytes): {why}. The "
        "checkpoints before it are untouched. Make room or mend the folder's rights, and start the run again."
    )
