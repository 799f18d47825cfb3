"""Parts of a benchmark, one after the other: what one finds is a row, and what one breaks stays with it."""

from __future__ import annotations

import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One measurement, or one thing that was checked."""

    what: str
    value: float
    unit: str
    tokens: int = 0  # of a forward, or a step
    forecast: float | None = None  # the account's, in the same unit
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Forecast by measurement."""
        return None if self.forecast is None or not self.value else self.forecast / self.value


class LeftOut(Exception):
    """A part, or a piece of one, that cannot be done here, and why."""


@dataclass(frozen=True)
class Setting:
    """What the parts are run with."""

    device: torch.device
    tiny: bool  # the smallest sizes: for a CPU and for CI
    until: float  # when to end, by `time.monotonic`

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def require_time(self, seconds: float, what: str) -> None:
        """Raises LeftOut where less than that is left."""
        if time.monotonic() + seconds > self.until:
            raise LeftOut(f"{what}: no time left")

    def seconds(self, work: Callable[[], object], repeats: int = 10, warm: int = 3) -> float:
        """The median of a few calls: of the device's time between two events, or of the CPU's."""
        if self.tiny:
            repeats, warm = 2, 1
        for _ in range(warm):
            work()
        taken = []
        for _ in range(repeats):
            if self.gpu:
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                torch.cuda.synchronize()
                begin.record()
                work()
                end.record()
                end.synchronize()
                taken.append(begin.elapsed_time(end) / 1e3)
            else:
                since = time.perf_counter()
                work()
                taken.append(time.perf_counter() - since)
        return statistics.median(taken)


Part = Callable[[Setting], Iterable[Row]]


def run(parts: dict[str, Part], setting: Setting) -> Iterator[tuple[str, Row | Exception]]:
    """(part, each row of it, or what it ended with), as they come. A part that fails ends itself alone."""
    for number, (name, part) in enumerate(parts.items(), 1):
        left = max(0.0, setting.until - time.monotonic())
        print(f"[{number}/{len(parts)}] {name} ... ({left:.0f} s left)", file=sys.stderr, flush=True)
        try:
            for row in part(setting):
                yield name, row
        except Exception as error:
            if not isinstance(error, (LeftOut, ImportError)):
                traceback.print_exc()
            yield name, error
        if setting.gpu:
            gc.collect()
            torch.cuda.empty_cache()
