"""Files that are there whole or not at all, and locks that end with the process that holds them.

A file is written under a temporary name (NAME.PID.partial: two processes never share one), synced, renamed, and its
folder synced. A kill may leave the temporary name; `*.partial` may be removed once no writer is alive.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import xxhash

from gamut.errors import GamutError

# What reading JSON and .npy that anybody may have written raises, besides OSError
UNSOUND = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, MemoryError, RecursionError, EOFError,
    SyntaxError, TokenError,
)  # fmt: skip
DIGEST = "digest"  # key of a JSON file's digest of the rest
LAG = "GAMUT_STORAGE_LAG"
_NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "9p", "afs", "fuse.sshfs", "fuse.s3fs",
    "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone",
}  # fmt: skip
TEMPORARY = ".partial"  # ending of names that a kill may leave behind

# Called before each write, fsync and rename with its name and path. A test makes the process die there.
hook: Callable[[str, Path], None] = lambda action, path: None  # noqa: E731


@contextmanager
def replacing(path: Path, error: type[GamutError] | None = None) -> Iterator[BinaryIO]:
    """A new binary file (readable too) that takes the name `path` when the block ends without an exception.

    Raises OSError as the system does where the disk is full or the folder cannot be written, with the file's name and
    its bytes so far as `wanted`, or `error` with a sentence instead; the file that was there before is untouched then.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    wanted = 0
    try:
        try:
            with open(temporary, "w+b", buffering=1 << 20) as file:
                try:
                    yield file
                finally:
                    with contextlib.suppress(ValueError):  # closed by the block
                        wanted = file.tell()
                file.flush()
                hook("fsync", path)
                os.fsync(file.fileno())
            hook("rename", path)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # where it could not be made, it cannot be removed either
                temporary.unlink(missing_ok=True)
            raise
    except OSError as problem:
        problem.filename, problem.wanted = str(path), wanted  # type: ignore[attr-defined]
        if error is None:
            raise
        raise error(refusal(problem)) from problem


def refusal(error: OSError, path: str | Path = "", wanted: int = 0) -> str:
    """A sentence about a failed write, for whoever can make room: rank, path, bytes wanted and bytes free.

    path, wanted: where the error does not say them.
    """
    place = Path(error.filename or path)
    wanted = getattr(error, "wanted", 0) or wanted
    rank = f"Rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    why = f"{error.strerror or error} ({wanted:,} bytes wanted, {free(place)} bytes free)"
    return f"{rank}{place} cannot be written: {why}."


def free(path: Path) -> str:
    """The bytes that are free where a path is, or would be."""
    for place in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(place).free:,}"
    return "an unknown number of"


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that a file lies on, or would; None where it is local."""
    path, place, kind = path.resolve(), Path("/"), ""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    for point, system in mounts:
        if path.is_relative_to(point) and Path(point).is_relative_to(place):
            place, kind = Path(point), system
    return kind if kind in _NETWORK else None


def appears(path: Path) -> bool:
    """Whether a file or folder is there, waited for where it may only not show yet.

    A network file system may show to one machine, for up to a minute, what was before another wrote. Whoever was told
    of a file asks here before calling it lost. The wait is that of the environment's GAMUT_STORAGE_LAG in seconds, or a
    minute on a network file system and none elsewhere. Raises GamutError where that is no number.
    """
    if os.path.exists(path):
        return True
    told = os.environ.get(LAG) or ("60" if network_file_system(path) else "0")
    try:
        until = time.monotonic() + float(told)
    except ValueError:
        raise GamutError(f"{LAG} must be a number of seconds, not {told!r}.") from None
    while time.monotonic() < until:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # has some systems look anew
        if os.path.exists(path):
            return True
    return False


def write_bytes(path: Path, content: bytes, error: type[GamutError] | None = None) -> None:
    """Write a whole file at once, as `replacing` does."""
    with replacing(path, error) as file:
        hook("write", path)
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole file of text in UTF-8, as `replacing` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> dict[str, Any]:
    """Write a JSON file as `write_hashed` does."""
    text = json.dumps(value, indent=1, sort_keys=True).encode()
    return write_hashed(path, lambda file: file.write(text))


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with a digest of all of it: one changed bit shows (`require_digest`)."""
    bare = {name: value for name, value in content.items() if name != DIGEST}
    read = json.loads(json.dumps(bare))  # its keys are text then, and are sorted as text
    return bare | {DIGEST: xxhash.xxh3_128_hexdigest(json.dumps(read, sort_keys=True).encode())}


def require_digest(content: dict[str, Any]) -> None:
    """Raise ValueError where what was read is not what `with_digest` gave. What has none passes (older files)."""
    if DIGEST in content and with_digest(content)[DIGEST] != content[DIGEST]:
        raise ValueError("what it says does not have its digest")


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


def write_hashed(path: Path, fill: Callable[[Hashed], object]) -> dict[str, Any]:
    """Write `path` as `replacing` does: {"sha256", "size"} of what was meant to be written. Raises OSError."""
    with replacing(path) as file:
        hashed = Hashed(file, path)
        fill(hashed)
    return {"sha256": hashed.sha256.hexdigest(), "size": hashed.size}


def sync(path: Path) -> None:
    """Make what a closed file holds, or the names in a folder, durable."""
    hook("fsync", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(source: Path, target: Path) -> None:
    """Rename a folder whose files are durable, durably."""
    sync(source)
    hook("rename", target)
    os.rename(source, target)
    sync(target.parent)


@contextmanager
def lock(path: Path, *, wait: bool = True, shared: bool = False, inherited: bool = True) -> Iterator[bool]:
    """Hold the lock of the file `path` (made if need be, in a folder that is there) for the length of the block.

    False where another process has it and it is not to be `wait`ed for. `shared`: with others who say so too. The
    lock is the kernel's and ends with the process, however that ends; a child forked meanwhile holds it as well,
    unless it is not to be `inherited` (such a lock also goes as soon as this process closes any descriptor of the file,
    so open it no second time). Raises OSError, also where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with lock_open(descriptor, wait=wait, shared=shared, inherited=inherited) as held:
            yield held
    finally:
        os.close(descriptor)


@contextmanager
def lock_open(descriptor: int, *, wait: bool = True, shared: bool = False, inherited: bool = True) -> Iterator[bool]:
    """Hold the lock of an open file, as `lock` does."""
    take = fcntl.flock if inherited else fcntl.lockf
    try:
        take(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        # By name, not by closing: a process forked meanwhile holds a copy of the descriptor.
        with contextlib.suppress(OSError):
            take(descriptor, fcntl.LOCK_UN)
