"""How DeepSpeed's checkpoint files reach the disk and come back: hashed and durable, verified and restricted."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from safetensors.torch import load as load_tensors

from gamut import files
from gamut.errors import CheckpointError
from gamut.train.unpickle import unpickle


class Writer(CheckpointEngine):
    """Writes a checkpoint's files under `root` and notes their hashes in `entries` (by path relative to `root`).

    DeepSpeed runs collectives between its files. A write that fails must not leave the other ranks waiting in one, so
    it becomes `problem`, a sentence, and later writes are not tried.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.name = "gamut"
        self.root = root
        self.entries: dict[str, dict[str, Any]] = {}
        self.problem = ""

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def save(self, state_dict: Any, path: str) -> None:
        """Called by DeepSpeed: torch.save, hashed and durable."""
        self._write(Path(path), lambda file: torch.save(state_dict, file))

    def bytes(self, name: str, data: bytes) -> None:
        """A file of our own."""
        self._write(self.root / name, lambda file: file.write(data))

    def _write(self, path: Path, fill: Any) -> None:
        if self.problem:
            return
        written: list[files.Hashed] = []

        def counted(file: files.Hashed) -> None:
            written.append(file)
            fill(file)

        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self.entries[str(path.relative_to(self.root))] = files.write_hashed(path, counted)
        except OSError as error:
            error.filename = error.filename or str(path)
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            self.problem = explain(error, rank, written[0].size if written else 0)

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("a Writer only writes")


class Reader(CheckpointEngine):
    """Reads DeepSpeed's files of a verified checkpoint: each is checked again, in memory, before it is unpickled."""

    def __init__(self, root: Path, entries: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.name = "gamut"
        self.root = root
        self.entries = entries

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def save(self, state_dict: Any, path: str) -> None:
        raise NotImplementedError("a Reader only reads")

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """A safetensors file of the checkpoint, by its path below the root."""
        if name not in self.entries:
            raise CheckpointError(f"The manifest of {self.root} has no file {name}: it was written by another setup.")
        return load_tensors(read_verified(self.root / name, self.entries[name]))

    def load(self, path: str, map_location: Any = None) -> Any:
        name = str(Path(path).relative_to(self.root))
        if name not in self.entries:
            raise CheckpointError(f"The manifest of {self.root} has no file {name}: it was written by another setup.")
        return unpickle(read_verified(Path(path), self.entries[name]), path, map_location)


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
