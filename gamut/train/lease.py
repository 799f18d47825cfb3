"""One live writer a run folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from gamut import files
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
    with contextlib.ExitStack() as held:
        if world.first:
            try:
                held.enter_context(_locked(Path(folder)))
            except (RunError, OSError) as problem:
                error = problem
        world.agree(error, "take the run folder")
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Not inherited: a worker that outlives this process for a moment must not keep the next attempt out. Such a lock
    # goes when this process closes any descriptor of the file, so all is done through this one.
    with open(descriptor, "r+") as file, files.lock_open(descriptor, wait=False, inherited=False) as held:
        if not held:
            holder = file.read(200).strip() or "another process"
            raise RunError(
                f"The run folder {folder} is in use by {holder}. Wait for it to end or stop it, or give this run "
                "another name (run.name=...)."
            )
        file.truncate()
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        yield
