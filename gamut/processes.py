"""End with the processes that started us.

A process whose launcher was killed must not live on: it would hold a GPU, a port and a run folder. Linux can signal
the death of a parent only, and between a worker and its launcher there are others that survive, so the whole line is
watched. A process is its pid and its start time, since pids are used again.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

LAUNCHER = "GAMUT_LAUNCHER"  # in a rank's environment: its launcher's pid and start
DEEPSPEED = "CROSS_RANK"  # in the environment of ranks that DeepSpeed's launcher has started


@dataclass(frozen=True)
class Process:
    """A process of this machine, for as long as it lives."""

    pid: int
    started: int  # clock ticks after boot

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has `pid` now, None where there is none."""
        found = _stat(pid)
        return None if found is None else cls(pid, found[2])

    def alive(self) -> bool:
        """Whether it runs: one that was killed and whom nobody has waited for yet does not."""
        found = _stat(self.pid)
        return found is not None and found[2] == self.started and found[1] not in "ZX"


def _stat(pid: int) -> tuple[int, str, int, int] | None:
    """(parent, state, start time, process group) from /proc, None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    words = text[text.rindex(")") + 2 :].split()  # the name before it may hold spaces and brackets
    return int(words[1]), words[0], int(words[19]), int(words[2])


def _ignores_hangup(pid: int) -> bool:
    """Whether a process ignores SIGHUP: nohup says so to what it starts, and that to what it starts in turn.

    True where it has just ended: it stays in the line, and is found to be gone.
    """
    try:
        words = Path(f"/proc/{pid}/status").read_text().split()
    except OSError:
        return True
    return bool(int(words[words.index("SigIgn:") + 1], 16) >> (signal.SIGHUP - 1) & 1)


def ancestors(top: int | None = None) -> list[Process]:
    """The living line above this process, parent first, up to the process `top`.

    Without `top` the line goes up as far as it stays in this process's group, and has at least the parent: what a
    shell starts as one job is one group, so the launcher is in it and the login shell is not. A shell without job
    control (a script, `ssh node 'nohup ... &'`) has all in its own group: there the line ends below the first that
    does not ignore SIGHUP, as what nohup started does. A job may thus outlive the shell but not its launcher. The first
    process of the machine or container is never in the line.
    """
    line: list[Process] = []
    here = _stat(os.getpid())
    pid, below = os.getppid(), os.getpid()
    while here is not None and pid > 1:
        found = _stat(pid)
        if found is None:
            break
        if top is None and line and (found[3] != here[3] or (_ignores_hangup(below) and not _ignores_hangup(pid))):
            break
        line.append(Process(pid, found[2]))
        if pid == top:
            break
        pid, below = found[0], pid
    return line


def let_threads_sleep() -> None:
    """Let threads of torch, if it is not imported yet, sleep while they wait, unless the user has said how they do.

    They would spin, by GNU's OpenMP: where other programs use the cores too, a small model is twenty times slower so.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def name_launcher() -> None:
    """Say in the environment that this process will start ranks. Between their start and their first line it may end,
    and then nothing else would tell them that there was one."""
    self = Process.of(os.getpid())
    assert self is not None
    os.environ[LAUNCHER] = f"{self.pid} {self.started}"


def watch_launcher() -> None:
    """Watch the ancestors of this process, once, where a launcher of ranks started it (RANK is set). To be called first
    of all: what a rank imports takes seconds, in which its launcher may end."""
    if "RANK" in os.environ:
        _watch_once(os.getpid())


@functools.cache
def _watch_once(pid: int) -> None:
    watch_ancestors()
    launcher = Process(*map(int, os.environ[LAUNCHER].split())) if LAUNCHER in os.environ else None
    if launcher is not None and not launcher.alive():  # else it is alive, and in the line that is watched
        _end_without(launcher.pid, 113)
    if launcher is None and DEEPSPEED in os.environ and not _below("deepspeed"):
        _end_without("DeepSpeed's launcher", 113)


def _below(name: str) -> bool:
    """Whether the command line of a process above this one has this name in it."""
    pid = os.getppid()
    while pid:
        try:
            if name in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                return True
        except OSError:
            return False
        found = _stat(pid)
        pid = 0 if found is None else found[0]
    return False


def watch_ancestors(
    top: int | None = None, *, parent: int | None = None, every: float = 1.0, status: int = 113
) -> threading.Thread:
    """Start a daemon thread that ends this process within about `every` seconds of the death of an ancestor.

    The line is that of `ancestors(top)`, taken now. `parent` is the pid of whoever started this process, where that
    is known: it may have died before now. The end is immediate (`os._exit(status)`): no handler runs and nothing is
    saved, since whoever would want it is gone.
    """
    line = ancestors(top)
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while True:
            gone = next((process.pid for process in line if not process.alive()), None)
            if gone is None and os.getppid() != parent:
                gone = parent
            if gone is not None:
                _end_without(gone, status)
            time.sleep(every)

    thread = threading.Thread(target=watch, name="ancestors", daemon=True)
    thread.start()
    return thread


def _end_without(gone: int | str, status: int) -> NoReturn:
    print(f"process {os.getpid()} ends: its ancestor {gone} is gone", file=sys.stderr, flush=True)
    os._exit(status)
