"""The folder of a run's checkpoints: `step-00000100/` after 100 steps, `latest`, the name of the newest, and
`kept.json`, those that are kept for good: folder -> epochs done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gamut import files
from gamut.errors import CheckpointError

LATEST = "latest"  # for people and scripts too; a run that goes on looks at the checkpoints themselves
KEPT = "kept.json"
STATE = "state.json"  # of a checkpoint: where the run stood
MANIFEST = "manifest.json"  # of a checkpoint: sha256 and size of every file
SAVING, REMOVING = ".saving-", ".removing-"  # before a checkpoint's name, while that goes on


def step_name(step: int) -> str:
    """The folder of what belongs to a step: a checkpoint, or a probe that is not scored yet."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a folder's name says; -1 where it says none."""
    found = re.fullmatch(r"step-(\d{8,})", path.name)
    return int(found[1]) if found else -1


@dataclass(frozen=True)
class Checkpoints:
    """`RUN/checkpoints/`, there or not."""

    folder: Path

    def place(self, step: int) -> Path:
        """Of a step's checkpoint."""
        return self.folder / step_name(step)

    def saved(self) -> list[Path]:
        """The checkpoint folders, newest first, verified or not."""
        return sorted(steps_in(self.folder), key=step_of, reverse=True)

    def newest(self) -> Path:
        """The one that `latest` names. Raises CheckpointError where there is none (any more)."""
        latest = self.folder / LATEST
        try:
            name = latest.read_text().strip()
        except OSError as error:
            raise CheckpointError(
                f"The run {self.folder.parent} has published no checkpoint yet, or they were removed: no {latest}."
            ) from error
        if not name or Path(name).name != name or not (self.folder / name).is_dir():
            raise CheckpointError(f"{latest} names {name!r}, and there is no such checkpoint beside it (any more).")
        return self.folder / name

    def keep(self, name: str, epochs_done: int) -> None:
        """Keep the checkpoint `name` for good; written before the checkpoint is, so that none is ever missed.

        Raises OSError as the system does.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_json(self.folder / KEPT, self.noted() | {name: epochs_done})

    def noted(self) -> dict[str, int]:
        """Every checkpoint that was to be kept, also one that was never finished. Raises CheckpointError where the note
        is damaged: what to remove could not be told then."""
        path = self.folder / KEPT
        try:
            return {str(name): int(epochs) for name, epochs in json.loads(path.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}, which says what checkpoints are kept, cannot be read: {error}. Write it again, such as "
                '{"step-00000100": 10} for the checkpoint after epoch 10, or remove it to keep only those to come.'
            ) from error

    def kept(self) -> dict[int, Path]:
        """epochs done -> checkpoint folder, in order, of those that are there."""
        found = {epochs: self.folder / name for name, epochs in self.noted().items() if (self.folder / name).is_dir()}
        return dict(sorted(found.items()))


def steps_in(folder: Path) -> list[Path]:
    """The folders of steps in a folder, in no order."""
    return [path for path in folder.glob("step-*") if step_of(path) >= 0 and path.is_dir()]


def epochs_at(checkpoint: Path) -> tuple[int, float] | None:
    """(step, epochs done) as the checkpoint's state says; None where it has none, as weights alone."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_bytes())["state"]
        part = min(state["step_in_epoch"] / max(state["epoch_steps"], 1), 1.0)  # a grown set has more steps
        return int(state["step"]), float(state["epoch"] + part)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify(path: Path, needed: str = STATE) -> dict[str, Any]:
    """The manifest of a checkpoint folder whose files all are as it says. Raises CheckpointError naming what is not.

    needed: a file without which it is no checkpoint; empty for a folder of another kind that has such a manifest.
    """
    manifest = read_manifest(path, needed)
    for name, entry in sorted(manifest["files"].items()):
        read_verified(path / name, entry)
    return manifest


def read_manifest(path: Path, needed: str = STATE) -> dict[str, Any]:
    """The manifest of a checkpoint folder, whose files are not looked at: otherwise as `verify`."""
    files.appears(path / MANIFEST)
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        entries = {
            name: {"sha256": entry["sha256"], "size": entry["size"]} for name, entry in manifest["files"].items()
        }
    except (OSError, *files.UNSOUND) as error:
        raise CheckpointError(f"The checkpoint {path} has no readable manifest.json.") from error
    if needed and needed not in entries:
        raise CheckpointError(f"The checkpoint {path} has an empty manifest.json.")
    for name in sorted(entries):
        if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"The manifest.json of the checkpoint {path} names {name!r}, which is not in it.")
    return manifest


def whole_before(checkpoint: Path) -> Path | None:
    """The newest checkpoint of the same run before one, and whole; None where there is none."""
    for path in Checkpoints(checkpoint.parent).saved():
        if step_of(path) < step_of(checkpoint):
            with contextlib.suppress(CheckpointError):
                verify(path)
                return path
    return None


def read_verified(path: Path, entry: dict[str, Any]) -> bytes:
    """The bytes of a file, checked against its manifest entry before anybody interprets them.

    Raises CheckpointError naming the file: missing, another size, another hash.
    """
    files.appears(path)
    try:
        there = path.stat()
        if there.st_size != entry["size"] or not stat.S_ISREG(there.st_mode):  # before it is read
            raise CheckpointError(f"The checkpoint file {path} has {there.st_size} bytes instead of {entry['size']}.")
        try:
            data = path.read_bytes()
        except OSError as error:
            if error.errno != errno.ESTALE:  # another machine has just put it there anew (NFS)
                raise
            data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"The checkpoint file {path} cannot be read ({error.strerror}).") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"The checkpoint file {path} is damaged: its sha256 is not that of the manifest.")
    return data


def discard(path: Path) -> None:
    """Remove a checkpoint: first its name, so that a half removed one is never taken for whole."""
    gone = path.with_name(f"{REMOVING}{path.name}")
    files.hook("rename", gone)
    path.rename(gone)
    shutil.rmtree(gone)


def remove_leftovers(folder: Path) -> None:
    """Remove what an attempt that died while saving or removing left behind."""
    for prefix in (SAVING, REMOVING):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path)
    for path in folder.glob(f"*{files.TEMPORARY}"):
        path.unlink()
