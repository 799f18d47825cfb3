"""One live writer a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from gamut.errors import RunError
from gamut.train.world import World


@contextlib.contextmanager
def lease(folder: Path, world: World) -> Iterator[None]:
    """Hold the run folder (made if need be, mode 0700) while entered; rank 0 locks FOLDER/lock for all ranks.

    The lock is the kernel's (fcntl): it ends with the process, however that ends, and works between nodes on a
    network file system that has locks. Enter it before anything is written into the folder.

    Raises RunError on every rank, naming the holder's process and host, where another process holds it.
    """
    error: Exception | None = None
    descriptor = None
    if world.first:
        try:
            descriptor = _lock(Path(folder))
        except (RunError, OSError) as problem:
            error = problem
    try:
        world.agree(error, "take the run folder")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise RunError(
            f"The run folder {folder} is in use by {holder}. Wait for it to end or stop it, or give this run another "
            "name (run.name=...)."
        ) from problem
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
