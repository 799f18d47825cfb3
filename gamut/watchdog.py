"""A process that hangs ends by itself, and shows where: whoever works says from time to time that something has moved.

A hung rank would keep the others waiting, and the GPUs of all. It waits in a collective, a kernel or a file system that
does not answer, so nobody in the process can be asked: the stacks are all there is to see.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator

LATE = 5.0  # seconds after which the timer in C goes off, where a thread of Python could not


class Watchdog:
    """Within `within`, ends this process where nobody calls `beat` for so many seconds: what it was at and the stacks
    of all its threads on stderr, status 1. Elsewhere its methods do nothing.

    A thread looks after it. A second timer lives in C and goes off 5 s later: it has no words, but it does so although
    something holds Python's lock.
    """

    def __init__(self) -> None:
        self._seconds = 0.0  # 0: nobody is watched
        self._phase = ""
        self._beaten = 0.0
        self._armed = 0.0  # when the timer in C was set
        self._resting = False

    @contextlib.contextmanager
    def within(self, seconds: float, phase: str) -> Iterator[None]:
        """Watch from now to the end of the block. One inside another has the limit of the inner one while it lasts."""
        before, self._seconds = self._seconds, seconds
        ended = threading.Event()
        if not before:
            threading.Thread(target=self._watch, args=(ended,), name="watchdog", daemon=True).start()
        self.beat(phase)
        try:
            yield
        finally:
            self._seconds = before
            if before:
                self.beat()
            else:
                ended.set()
                faulthandler.cancel_dump_traceback_later()

    def beat(self, phase: str = "") -> None:
        """Something has moved. phase: what the process is at from now on, for the message; empty: what it was at."""
        if not self._seconds or self._resting:
            return
        self._phase = phase or self._phase
        self._beaten = now = time.monotonic()
        if now - self._armed >= self._pause:
            faulthandler.dump_traceback_later(self._seconds + self._pause + LATE, exit=True, file=2)
            self._armed = now

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Do not watch what has a limit of its own, or waits for others who are watched."""
        before, self._resting = self._resting, True
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self._resting = before
            self._armed = 0.0
            self.beat()

    @property
    def _pause(self) -> float:
        """Between two looks; and a beat so soon after another does not set the timer in C, which starts a thread."""
        return min(1.0, self._seconds / 10.0)

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(self._pause):
            seconds = self._seconds
            if seconds and not self._resting and time.monotonic() - self._beaten > seconds:
                rank = f"rank {os.environ['RANK']}, " if "RANK" in os.environ else ""
                said = f"Timeout: nothing has moved for {seconds:g} s in {rank}process {os.getpid()}, which is at: "
                os.write(2, f"{said}{self._phase}. It ends; these are its stacks.\n".encode())  # print may be locked
                faulthandler.dump_traceback(file=2, all_threads=True)
                os._exit(1)


WATCHDOG = Watchdog()  # the process's own
