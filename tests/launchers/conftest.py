"""A real SLURM of three nodes on this machine, for as long as the tests of this folder run."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launchers import options
from tests.lacking import INSTALL, lacking

DAEMONS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")

# MessageTimeout: SLURM repeats a step's termination that is not answered in time, a minute later; the next start of the
# job would meet it here, where it waits 10 s for its turn (cred_expire) and not two minutes.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
ReturnToService=2
SlurmdTimeout=30
InactiveLimit=0
MessageTimeout=60
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=1 RealMemory=4000
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_3} CPUs=1 RealMemory=4000
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF State=UP
PartitionName=spare Nodes=ALL PriorityTier=1 PreemptMode=OFF State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """The running cluster, as a person with a shell sees it."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # by the name of their node

    def start(self, node: str) -> None:
        """Start a node's daemon."""
        words = [shutil.which("slurmd", path=_path()) or "slurmd", "-f", f"{self.folder}/slurm.conf", "-D", "-N", node]
        with open(self.folder / f"{node}.out", "ab") as out:
            self.daemons[node] = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/"
            )

    def tasks(self, node: str) -> list[int]:
        """The processes of jobs on a node."""
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.folder}/slurm.conf".encode()}
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and marks <= {*(entry / "environ").read_bytes().split(b"\0")}:
                    found.append(int(entry.name))
        return found

    def lose(self, node: str) -> None:
        """All that runs on a node is gone at once, as with its power: its daemon, those of its steps, and its tasks."""
        tasks = self.tasks(node)
        parents = {int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1]) for task in tasks}
        steps = [pid for pid in parents - {*tasks} if "slurmstepd" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert steps
        self.daemons[node].kill()
        for pid in [*steps, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemons[node].wait(20)

    def run(self, *words: str, check: bool = True, timeout: float = 60.0) -> str:
        """Standard output of a command that knows this cluster."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        text = self.run("scontrol", "show", "job", "-o", number, check=False)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait(self, what: str, true: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
        """Wait until `true()`; fail with the job's output and the queue after so many seconds."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                tail = log.read_text()[-6000:] if log is not None and log.exists() else ""
                queue = self.run("squeue", "-a", "-o", "%i %P %j %T %r", check=False)
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{queue}\n{tail}")
            time.sleep(0.25)


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that this process would have become; it ends instead."""
    words: list[list[str]] = []

    def execv(path: str, arguments: list[str]) -> None:
        words.append(arguments)
        raise SystemExit

    monkeypatch.setattr(options.os, "execv", execv)
    return words


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Nodes of one CPU each: n1 and n2 in the partitions `low` (preempted by requeueing, 60 s of grace) and `high`, and
    n3 with them in `spare`."""
    missing = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    reason = ""
    if os.geteuid() != 0:
        reason = "a SLURM of our own needs root"
    elif missing:
        reason = f"there is no {missing[0]} {INSTALL}"
    if reason:
        lacking(reason)
    folder = Path(tempfile.mkdtemp(prefix="gamut-slurm-", dir="/tmp"))
    folder.chmod(0o755)  # munged runs as its own user and must come through
    started: list[subprocess.Popen[bytes]] = []
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
    environment |= {"PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    cluster = Slurm(folder, environment)
    try:
        _start_munge(folder, started)
        _start_slurm(cluster, started)
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            _empty_queue(cluster)
        for process in [*cluster.daemons.values(), *reversed(started)]:
            _end(process)
        _end_left_over(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _start_munge(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    home = folder / "munge"
    home.mkdir(mode=0o755)
    key = home / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    for path in (home, key):
        shutil.chown(path, "munge", "munge")
    words = ["munged", "--foreground", f"--key-file={key}", f"--socket={home}/socket", f"--pid-file={home}/pid"]
    words += [f"--log-file={home}/log", f"--seed-file={home}/seed"]
    with open(folder / "munged.out", "wb") as out:
        started.append(
            subprocess.Popen(
                [shutil.which("munged", path=_path()) or "munged", *words[1:]],
                user="munge",
                group="munge",
                extra_groups=[],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
            )
        )
    _until(lambda: (home / "socket").exists(), started[-1], folder / "munged.out")


def _start_slurm(cluster: Slurm, started: list[subprocess.Popen[bytes]]) -> None:
    folder = cluster.folder
    for name in ("state", "spool"):
        (folder / name).mkdir(mode=0o755)
    host = socket.gethostname().split(".")[0]
    ports = dict(zip(("port", "port_1", "port_2", "port_3"), _free_ports(4), strict=True))
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, **ports))
    controller = [shutil.which("slurmctld", path=_path()) or "slurmctld", "-f", str(folder / "slurm.conf"), "-D"]
    with open(folder / "slurmctld.out", "wb") as out:
        started.append(
            subprocess.Popen(
                controller, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/"
            )
        )
    _until(lambda: "UP" in cluster.run("scontrol", "ping", check=False), started[-1], folder / "slurmctld.log")
    for node in ("n1", "n2", "n3"):
        cluster.start(node)

    def idle() -> bool:
        return cluster.run("sinfo", "-h", "-N", "-p", "spare", "-o", "%T", check=False).split() == ["idle"] * 3

    _until(idle, cluster.daemons["n3"], folder / "n3.log")


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            text = log.read_text()[-4000:] if log.exists() else ""
            raise AssertionError(f"{process.args} did not come up (status {process.poll()}):\n{text}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _empty_queue(cluster: Slurm) -> None:
    for number in cluster.run("squeue", "-h", "-o", "%i").split():
        cluster.run("scancel", number, check=False)
    end = time.monotonic() + 30
    while cluster.run("squeue", "-h", "-o", "%i").strip() and time.monotonic() < end:
        time.sleep(0.3)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


def _end_left_over(folder: Path) -> None:
    """Step daemons and tasks that outlived their node: each knows our slurm.conf, so it is one of ours."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
