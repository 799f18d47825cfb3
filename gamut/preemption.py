"""A process that is told to end soon: SLURM's warning before it takes the nodes away, or its time limit."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Preempted(BaseException):
    """What was being done is left, since the process is to end: nothing is wrong with it. Raised on all ranks alike."""


class Preemption:
    """While entered, SIGUSR2 (SLURM's warning) and SIGTERM only set `asked`; the handlers before come back on leaving.

    The ranks agree on it in the next step's reduction, or where they next meet. Saving inside a handler would deadlock:
    only some ranks may have the signal yet, and a checkpoint is collective. Entered again it is the same: what is asked
    between two runs of a process, or in an evaluation, holds until the process is done.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        self._depth = 0

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __enter__(self) -> Preemption:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()
        self.asked = False


PREEMPTION = Preemption()  # the process's own
