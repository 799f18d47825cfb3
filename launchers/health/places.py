"""The places of data, runs and metrics: space, rates, locks, clocks."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from gamut import files
from gamut.track.store import public
from launchers.health import BROKEN, FINE, WARNING, Check

SAMPLE = 256 * 2**20  # bytes written and read to find a rate
PART = 2**20
SLOW = 50e6  # bytes/s; FLAC for one GPU that takes 850 clips of 10 s a second is about 150e6
ROOM = 20e9  # bytes: some checkpoints of a ViT-B with teacher and optimizer
SKEW = 2.0  # seconds
_PATIENCE = 10.0
LOCKED = """
import fcntl, sys
with open(sys.argv[1]) as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(7)
"""


def look(data: Path, runs: Path, mlflow: str) -> list[Check]:
    """The folder of the shards, the folder of the runs, and MLflow's URI, or `auto` or `off` as in a recipe."""
    runs_here = _existing(runs)
    if not os.access(runs_here, os.W_OK):
        remedy = "Name a folder that you can write to: --runs, and run.folder in the recipe."
        checks = [Check("runs", BROKEN, f"{runs_here} cannot be written to", remedy)]
    else:
        with _probe_in(runs_here) as probe:
            checks = [_room(runs_here), _write_rate(probe), _lock(probe), _file_clock(probe)]
    return [*checks, _read_rate(data), *_mlflow(mlflow, runs.expanduser().absolute())]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest existing one above it."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


@contextlib.contextmanager
def _probe_in(folder: Path) -> Iterator[Path]:
    probe = folder / f".gamut-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _room(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    problem = None if free >= ROOM else f"{free / 1e9:.1f} GB free at {folder}"
    return Check.of("room for runs", f"{free / 1e9:.0f} GB free", problem, "Free some, or name --runs.", WARNING)


def _write_rate(probe: Path) -> Check:
    block = os.urandom(PART)
    since = time.perf_counter()
    try:
        with probe.open("wb") as file:
            for _ in range(SAMPLE // PART):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "Free some, or name another folder: --runs."
        return Check("runs, writing", BROKEN, f"{probe.parent}: {error.strerror or error}", remedy)
    rate = SAMPLE / (time.perf_counter() - since)
    remedy = "Checkpoints will take long: put the runs on a faster file system."
    return _rate("runs, writing", rate, "with fsync", f"at {probe.parent}", remedy)


def _rate(name: str, rate: float, how: str, where: str, remedy: str) -> Check:
    found = f"{rate / 1e6:.0f} MB/s {how}"
    return Check.of(name, found, None if rate >= SLOW else f"{found}, {where}", remedy, WARNING)


def _lock(probe: Path) -> Check:
    """Whether one process's lock keeps another process out, as a run's folder needs."""
    remedy = "Two runs could write into one folder: mount with locks (NFS: without nolock), or use another place."
    try:
        with files.lock(probe):
            done = subprocess.run([sys.executable, "-c", LOCKED, str(probe)], timeout=60, check=False)
    except OSError as error:
        return Check("runs, locks", BROKEN, f"no file locks at {probe.parent}: {error.strerror or error}", remedy)
    problem = None if done.returncode == 7 else f"a lock at {probe.parent} does not keep another process out"
    return Check.of("runs, locks", "hold between processes", problem, remedy)


def _file_clock(probe: Path) -> Check:
    before = time.time()
    probe.touch()
    probe.write_bytes(b"now")
    ahead = probe.stat().st_mtime - (before + time.time()) / 2
    return _clock("clock of the runs folder", ahead, str(probe.parent))


def _clock(name: str, ahead: float, of: str) -> Check:
    problem = None if abs(ahead) <= SKEW else f"{of} is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
    return Check.of(name, f"within {SKEW:g} s of this machine's", problem, "Run NTP on both (chrony, ntpd).", WARNING)


def _read_rate(data: Path) -> Check:
    """The rate for the largest shard below the folder, after dropping it from the kernel's cache where allowed."""
    shards = sorted(data.rglob("*.tar"), key=lambda tar: tar.stat().st_size) if data.is_dir() else []
    if not shards:
        return Check("data, reading", FINE, f"no shards in {data} to measure with (--data names their folder)")
    shard = shards[-1]
    with shard.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        since, read = time.perf_counter(), 0
        while read < SAMPLE and (block := file.read(PART)):
            read += len(block)
        rate = read / (time.perf_counter() - since)
    remedy = "Copy the shards to a faster disk, or give the loader more workers."
    return _rate("data, reading", rate, "by one reader", f"of {shard}", remedy)


def _mlflow(uri: str, runs: Path) -> list[Check]:
    if uri == "off":
        return [Check("MLflow", FINE, "off: metrics.jsonl alone")]
    if uri == "auto":
        uri = f"sqlite:///{runs / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        return [_database(Path(uri.removeprefix("sqlite:///")))]
    return _server(uri)


def _database(path: Path) -> Check:
    kind = files.network_file_system(path)
    if kind is not None:
        remedy = "Name a server, track.mlflow=http://..., or a local file, track.mlflow=sqlite:////local/mlflow.db"
        return Check("MLflow", WARNING, f"{path} is on a network file system ({kind})", remedy)
    if not path.exists():
        return Check("MLflow", FINE, f"SQLite, to be made at {path}")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_PATIENCE)) as database:
            runs = database.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.Error as error:
        return Check(
            "MLflow", BROKEN, f"{path}: {error}", "Move it elsewhere; `gamut track feed RUN` restores the runs."
        )
    return Check("MLflow", FINE, f"SQLite, {runs} runs")


def _server(uri: str) -> list[Check]:
    remedy = "Training continues without it; once it answers, `gamut track feed RUN` sends what was missed."
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return [Check("MLflow", WARNING, f"{public(uri)}: not checked; only http(s) and sqlite are")]
    before = time.time()
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PATIENCE) as answer:  # noqa: S310 (http(s), see above)
            date = answer.headers.get("Date")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return [Check("MLflow", WARNING, f"{public(uri)} does not answer: {reason}", remedy)]
    checks = [Check("MLflow", FINE, public(uri))]
    if date is not None:
        ahead = parsedate_to_datetime(date).timestamp() + 0.5 - (before + time.time()) / 2  # whole seconds, cut
        checks.append(_clock("clock of MLflow's server", ahead, public(uri)))
    return checks
