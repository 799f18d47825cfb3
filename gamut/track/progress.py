"""What the person at the terminal sees: how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 5.0
_SHOWN = ("loss", "lr", "clips_per_second", "tokens_per_second", "bytes_per_second", "wait_share")


class NullProgress:
    """The progress of a rank that shows none."""

    def update(self, done: float, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> NullProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Progress(NullProgress):
    """A bar on a terminal; elsewhere (a log file, SLURM's output) a plain line every few seconds.

    `update(done, values)` takes the share of the whole run that is done, 0 to 1, and the step's metrics.
    """

    def __init__(self, name: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._stream = stream or sys.stdout
        self._clock = clock
        self._start: tuple[float, float] | None = None  # (time, done) at the first update: a resumed run's own rate
        self._last = (0.0, 0.0)
        self._shown_at = float("-inf")
        self._bar: Bar | None = None
        if self._stream.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:5.1f} %  {task.fields[note]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(name, total=1.0, note="")
            self._bar.start()

    def update(self, done: float, values: dict[str, float]) -> None:
        now = self._clock()
        if self._start is None:
            self._start = (now, done)
        self._last = (now, done)
        note = describe(values, self.left())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._shown_at >= PLAIN_SECONDS or done >= 1.0:
            self._shown_at = now
            print(f"{self.name}  {100 * done:5.1f} %  {note}", file=self._stream, flush=True)

    def left(self) -> float | None:
        """Seconds to the end at the rate since this attempt began; None while there is no rate."""
        if self._start is None or self._last[1] <= self._start[1]:
            return None
        seconds, share = self._last[0] - self._start[0], self._last[1] - self._start[1]
        return seconds / share * (1.0 - self._last[1])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(values: dict[str, float], left: float | None) -> str:
    """`loss 5.123  lr 0.0005  clips/s 31  left 1:02:03`: the metrics worth a glance, those that are there."""
    parts = [f"{_name(key)} {_number(key, values[key])}" for key in _SHOWN if key in values]
    parts.append(f"left {clock_time(left)}")
    return "  ".join(parts)


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
