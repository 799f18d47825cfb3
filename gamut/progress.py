"""What the person at the terminal sees of a long command or a training: how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

SHOWN = ("loss", "lr", "clips_per_second", "tokens_per_second", "bytes_per_second", "wait_share")


class NullProgress:
    """The progress of a rank that shows none."""

    def update(self, done: float, values: dict[str, float]) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Shown(NullProgress):
    """A bar on a terminal; elsewhere (a log file, SLURM's output) a plain line every so many seconds."""

    def __init__(self, name: str, total: float, every: float, stream: TextIO, clock: Callable[[], float]) -> None:
        self.name = name
        self._total = total
        self._every = every
        self._stream = stream
        self._clock = clock
        self._first: tuple[float, float] | None = None  # (time, done), of which a resumed run's own rate begins
        self._last = (0.0, 0.0)
        self._said_at = float("-inf")
        console = Console(file=stream)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[note]}"))
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(name, total=total, note="")

    def rate(self) -> float | None:
        """Units a second since the first that were told; None while there is no rate."""
        if self._first is None or self._last[1] <= self._first[1]:
            return None
        return (self._last[1] - self._first[1]) / max(self._last[0] - self._first[0], 1e-9)

    def left(self) -> float | None:
        """Seconds to the end at this rate."""
        rate = self.rate()
        return None if rate is None else (self._total - self._last[1]) / rate

    def _left(self) -> list[str]:
        """The time left in words; nothing while there is no rate."""
        left = self.left()
        return [] if left is None else [f"left {clock_time(left)}"]

    def _reach(self, done: float) -> None:
        self._last = (self._clock(), done)
        self._first = self._first or self._last

    def _show(self, note: str) -> None:
        now, done = self._last
        if not self._bar.disable:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._said_at >= self._every:
            self._said_at = now
            print(f"{self.name}  {note}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class Progress(_Shown):
    """Of a command over `total` clips, shards or whatever `unit` says; on stderr, so that output can be piped.

    >>> with Progress("converting", 2) as progress:    # doctest: +SKIP
    ...     progress.add(1)
    """

    def __init__(
        self, name: str, total: float, unit: str = "clips", clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(name, total, 10.0, sys.stderr, clock)
        self._unit = unit
        self._reach(0.0)
        self._said_at = self._last[0]  # what is done within seconds needs no line

    def add(self, units: float) -> None:
        """So many more are done."""
        self._reach(self._last[1] + units)
        done, rate = f"{self._last[1]:,.0f} of {self._total:,.0f} {self._unit}", self.rate()
        speed = f", {rate:,.{0 if rate >= 10 else 1}f}/s" if rate else ""
        self._show(", ".join([f"{done}{speed}", *self._left()]))


class TrainingProgress(_Shown):
    """Of a training, on stdout. `update(done, values)` takes the share of the whole run that is done, 0 to 1, and the
    step's metrics."""

    def __init__(self, name: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, 1.0, 5.0, stream or sys.stdout, clock)

    def update(self, done: float, values: dict[str, float]) -> None:
        self._reach(done)
        if done >= 1.0:
            self._said_at = float("-inf")  # the last step has a line in any case
        parts = [
            f"{100 * done:5.1f} %",
            *(f"{_name(key)} {_number(key, values[key])}" for key in SHOWN if key in values),
        ]
        self._show("  ".join([*parts, *self._left()]))


def _name(key: str) -> str:
    return {"wait_share": "waiting for data", "bytes_per_second": "MB/s"}.get(key, key.replace("_per_second", "/s"))


def _number(key: str, value: float) -> str:
    if key.endswith("_share"):
        return f"{100 * value:.0f} %"
    if key == "bytes_per_second":
        return f"{value / 1e6:.3g}"
    if key.endswith("_per_second"):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.3f}" if key == "loss" else f"{value:.2g}"


def clock_time(seconds: float | None) -> str:
    """Seconds as h:mm:ss, m:ss below an hour; ? where they are not known."""
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """`2.3 h`, `4 min 10 s`

    >>> duration(250)
    '4 min 10 s'
    """
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:,.1f} h"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
