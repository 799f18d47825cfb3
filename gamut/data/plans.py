"""Planned epochs on disk: folders of plain .npy files, planned once a node and memory-mapped by every process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gamut.errors import PlanError
from gamut.files import appears, lock, rename_folder, require_digest, sync, with_digest, write_text
from gamut.plan import Epoch, differing
from gamut.plan.epoch import ARRAYS, OF_BLOCKS, OPTIONAL, SCALARS

FORMAT = 2
DESCRIPTION = "plan.json"
ON_DISK = {"hop": "shift"}  # arrays whose file has another name
LOCK = "plan.lock"


def save_epoch(epoch: Epoch, folder: str | Path) -> None:
    """Write to a temporary folder, sync, rename: the folder is there completely or not at all.

    Raises PlanError where the folder exists already or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_temporary_prefix(folder), suffix=".tmp", dir=folder.parent))
        try:
            temporary.chmod(0o755 & ~_umask())
            _write(epoch, temporary)
            rename_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise PlanError(
            f"The plan of epoch {epoch.number} cannot be saved as {folder}: {error.strerror or error}. "
            "Free some space, or choose another folder for the run."
        ) from error


def load_epoch(folder: str | Path, expect: Mapping[str, str] | None = None, verify: bool = True) -> Epoch:
    """Map a saved epoch into memory.

    `expect` is the fingerprint that the plan must have; `verify` compares every file with its checksum (not needed
    where a parent process has done so; sizes are always checked). Raises PlanError where the folder is missing,
    damaged, or of another plan, naming the file or the fields.
    """
    folder = Path(folder)
    remedy = f"Remove {folder}; the same epoch is then planned again."
    try:
        about: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        if about["format"] != FORMAT:
            raise PlanError(f"The saved plan {folder} has format {about['format']}, not {FORMAT}. {remedy}")
        require_digest(about)
        changed = differing(about["fingerprint"], expect) if expect is not None else []
        if changed:
            raise PlanError(f"The saved plan {folder} differs in {', '.join(changed)}. {remedy}")
        names = [*ARRAYS, *(name for name in OPTIONAL if name in about["files"])]
        arrays: dict[str, Any] = {name: _map(folder, name, about["files"], verify) for name in names}
        of_blocks = OF_BLOCKS if "block" in about else ()
        scalars: dict[str, Any] = {name: about[name] for name in (*SCALARS, *of_blocks, "fingerprint")}
    except FileNotFoundError as error:
        raise PlanError(f"The saved plan {folder} lacks {Path(error.filename).name}. {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"The saved plan {folder} cannot be read: {error}. {remedy}") from error
    return Epoch(**scalars, **arrays)


def ensure_epoch(folder: str | Path, make: Callable[[], Epoch], expect: Mapping[str, str] | None = None) -> Epoch:
    """The epoch saved in `folder`, made and saved first if it is missing.

    All ranks of a node may call it at once: one makes the epoch, the others wait (by a lock file in the parent folder).
    `expect` is the fingerprint that a saved plan must have. Raises PlanError where a saved plan is damaged or differs,
    or where it cannot be saved, and whatever `make` raises.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        with _locked(folder.parent / LOCK) as alone:
            if not (folder / DESCRIPTION).exists():
                if alone:  # so this machine's temporary folders were left by killed writers
                    for stale in folder.parent.glob(f"{_temporary_prefix(folder)}*.tmp"):
                        shutil.rmtree(stale, ignore_errors=True)
                _save_or_meet(make(), folder)
    return load_epoch(folder, expect)


def _save_or_meet(epoch: Epoch, folder: Path) -> None:
    try:
        save_epoch(epoch, folder)
    except PlanError:
        # Without a working lock (some network file systems) another node may have saved the same epoch meanwhile.
        if not appears(folder / DESCRIPTION):
            raise


def _write(epoch: Epoch, folder: Path) -> None:
    files: dict[str, dict[str, int]] = {}
    for name, dtype in (ARRAYS | OPTIONAL).items():
        if getattr(epoch, name) is None:
            continue
        path = folder / f"{ON_DISK.get(name, name)}.npy"
        np.save(path, np.ascontiguousarray(getattr(epoch, name), dtype=dtype), allow_pickle=False)
        sync(path)
        with path.open("rb") as file:
            files[path.stem] = {"bytes": path.stat().st_size, "crc32": _crc32(file)}
    description = {
        "format": FORMAT,
        **{name: getattr(epoch, name) for name in (*SCALARS, *(OF_BLOCKS if epoch.whole is not None else ()))},
        "fingerprint": dict(epoch.fingerprint),
        "files": files,
    }
    write_text(folder / DESCRIPTION, json.dumps(with_digest(description), indent=1))


def _map(folder: Path, name: str, files: Mapping[str, Mapping[str, int]], verify: bool) -> np.ndarray:
    path = folder / f"{ON_DISK.get(name, name)}.npy"
    about = files[path.stem]
    appears(path)  # it is named, so it is there, or damage
    with path.open("rb") as file:  # once: thousands of processes map a plan at the same time (np.load opens it thrice)
        size = os.fstat(file.fileno()).st_size
        if size != about["bytes"]:
            raise ValueError(f"{path.name} has {size} bytes of {about['bytes']}")
        if verify and _crc32(file) != about["crc32"]:
            raise ValueError(f"{path.name} does not have its checksum")
        file.seek(0)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path.name} is of another version of .npy")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != (ARRAYS | OPTIONAL)[name]:
            raise ValueError(f"{path.name} holds {dtype}")
        array = np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
    return np.asarray(array)  # over the same memory, as in an index


def _crc32(file: BinaryIO) -> int:
    """Of the file from where it stands to its end."""
    value = 0
    while piece := file.read(1 << 20):
        value = zlib.crc32(piece, value)
    return value


def _temporary_prefix(folder: Path) -> str:
    """The prefix of this machine's temporary folders for a plan; they end in `.tmp`."""
    return f".{folder.name}.{os.uname().nodename}."


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file; False where the file system has no locks."""
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            alone = held.enter_context(lock(path))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise PlanError(
                    f"The plan cannot be saved in {path.parent}: {error.strerror}. Choose another folder for the run."
                ) from error
            alone = False
        yield alone
