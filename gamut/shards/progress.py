"""How far a command over a shard set is: clips or shards done, rate, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere; on stderr, so that output can be piped.

    >>> with Progress("converting", 2) as progress:    # doctest: +SKIP
    ...     progress.add(1)
    """

    def __init__(self, what: str, total: int, unit: str = "clips") -> None:
        self._what = what
        self._unit = unit
        self._total = total
        self._done = 0.0
        self._begin = self._last = time.monotonic()
        console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + ", {task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, rate="")

    def add(self, units: float) -> None:
        """So many more are done."""
        self._done += units
        now = time.monotonic()
        rate = self._done / max(now - self._begin, 1e-9)
        if not self._bar.disable:
            self._bar.update(self._task, completed=round(self._done), rate=f"{rate:,.0f}/s")
        elif now - self._last >= EVERY:
            self._last = now
            left = (self._total - self._done) / rate if rate else float("inf")
            print(
                f"{self._what}: {self._done:,.0f} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.stop()
