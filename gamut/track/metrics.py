"""metrics.jsonl: the truth about a run, one JSON object a line, only ever appended to.

A line of metrics is {"attempt": 1, "step": 20, "time": 1.7e9, "loss": 5.1, ...}. Lines with "event" mark what happened:
start (with the attempt's facts), checkpoint, figure, end (with the attempt's status). A line with "late" is of a step
that lies behind: what was computed beside the training and came in when it was ready. It undoes nothing.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gamut.errors import RunError
from gamut.files import refusal

RESERVED = frozenset({"attempt", "step", "time", "event", "late"})
SYNC_SECONDS = 10.0
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no such numbers: kept as words


class MetricsFile:
    """The writing end. Each line reaches the system in one write, and the disk at `sync` and every 10 s.

    A last line that a killed attempt left torn is cut off when the file is opened.
    """

    def __init__(self, path: Path, attempt: int, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.attempt = attempt
        self._clock = clock
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._cut_torn_line()
        self._synced = time.monotonic()
        self._turn = threading.Lock()  # what runs beside the training writes too

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        position = size
        while position > 0:
            start = max(0, position - 65536)
            block = os.pread(self._descriptor, position - start, start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < size:
            os.ftruncate(self._descriptor, position)

    def append(
        self, values: dict[str, Any], step: int | None = None, event: str | None = None, late: bool = False
    ) -> None:
        """Write one line. Raises ValueError for a key that the line itself uses; RunError where the disk refuses."""
        clash = RESERVED & values.keys()
        if clash:
            raise ValueError(f"a metric cannot be called {min(clash)!r}")
        line: dict[str, Any] = {"attempt": self.attempt, "time": round(self._clock(), 3)}
        if step is not None:
            line["step"] = int(step)
        if event is not None:
            line["event"] = event
        if late:
            line["late"] = True
        line.update((key, _word(value)) for key, value in values.items())
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            with self._turn:
                self._write(data)
        except OSError as error:
            raise self._refused(error, len(data)) from error
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            os.ftruncate(self._descriptor, size)  # the half of a line that fitted: the next one would be glued to it
            raise

    def sync(self) -> None:
        """Make all lines so far durable. Raises RunError where the disk refuses."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._refused(error) from error
        self._synced = time.monotonic()

    def close(self) -> None:
        if self._descriptor >= 0:
            try:
                self.sync()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _refused(self, error: OSError, wanted: int = 0) -> RunError:
        return RunError(
            f"{refusal(error, self.path, wanted)} Free some space or fix the folder's permissions, and start the run "
            "again: it resumes from its newest checkpoint."
        )


def _word(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """(line, offset of the next one) for every whole line from `offset` on; a torn last line is not yet a line.

    Raises RunError naming file and byte where a line in the middle cannot be read.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            try:
                line = json.loads(raw)
                int(line["attempt"]), float(line["time"])
            except (ValueError, TypeError, KeyError):
                raise RunError(f"{path} is damaged at byte {offset}: {raw[:60]!r} is not a line of metrics.") from None
            offset += len(raw)
            yield line, offset


@dataclass
class Attempt:
    """One start of the run: when, on what, and how it ended (None: it did not say)."""

    number: int
    started: float
    facts: dict[str, Any] = field(default_factory=dict)
    ended: float | None = None
    status: str | None = None


class History:
    """What the lines amount to: of each (key, step) the last attempt's value, and nothing that was undone.

    An attempt that goes on from step s undoes the later steps of those before it, so the lines of earlier attempts
    beyond its first step count no more, even before it has come that far itself.
    """

    def __init__(self) -> None:
        self.points: dict[str, dict[int, tuple[float, float]]] = {}  # key -> step -> (value, time)
        self.done: Mapping[str, int] = {}  # key -> step up to which points are not wanted any more
        self.figures: dict[str, dict[int, str]] = {}  # name -> step -> file
        self.attempts: dict[int, Attempt] = {}
        self.checkpoint: dict[str, Any] | None = None  # the line of the last one
        self.offset = 0
        self._reached = 0  # the attempt that has written a step

    @classmethod
    def read(cls, path: Path) -> History:
        history = cls()
        history.follow(path)
        return history

    def follow(self, path: Path) -> None:
        """Take in the lines that were written since the last time."""
        for line, offset in read_lines(path, self.offset):
            self.take(line)
            self.offset = offset

    def take(self, line: dict[str, Any]) -> None:
        number, event, step, when = int(line["attempt"]), line.get("event"), line.get("step"), float(line["time"])
        attempt = self.attempts.setdefault(number, Attempt(number, when))
        values = {key: value for key, value in line.items() if key not in RESERVED}
        if event == "start":
            attempt.started, attempt.facts = when, values
            return
        if event == "end":
            attempt.ended, attempt.status = when, str(values["status"])
            return
        if step is None:
            return
        if number > self._reached and not line.get("late"):
            self._undo(step)
            self._reached = number
        if event == "checkpoint":
            self.checkpoint = line
        elif event == "figure":
            self.figures.setdefault(values["name"], {})[step] = values["file"]
        elif event is None:
            for key, value in values.items():
                if step <= self.done.get(key, -1):
                    continue
                number_or_word = _NOT_FINITE[value] if isinstance(value, str) else float(value)
                self.points.setdefault(key, {})[step] = (number_or_word, when)

    def _undo(self, step: int) -> None:
        for points in self.points.values():
            for later in [s for s in points if s > step]:
                del points[later]
        for files in self.figures.values():
            for later in [s for s in files if s > step]:
                del files[later]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric in order of steps; empty where there is none."""
        points = sorted(self.points.get(key, {}).items())
        return [step for step, _ in points], [value for _, (value, _) in points]

    @property
    def last_attempt(self) -> Attempt | None:
        return self.attempts[max(self.attempts)] if self.attempts else None

    @property
    def settled(self) -> float:
        """The step up to which nothing can be undone any more: the last checkpoint's, or all once the run is done."""
        last = self.last_attempt
        if last is not None and last.status == "finished":
            return math.inf
        return -1 if self.checkpoint is None else int(self.checkpoint["step"])
