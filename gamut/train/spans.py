"""Where a step's time goes, by the device's own clock, without a wait for it."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch


class Spans:
    """What a step does, one after another: `begin` of what comes ends what went before, `end` the last.

    On a GPU each is an event in the current stream, whose time is known once the device is through with it; on a CPU
    the time itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def begin(self, what: str) -> None:
        """what: in a step prepare | train | communicate | update."""
        mark: Any = torch.cuda.Event(enable_timing=True) if self._gpu else time.perf_counter()
        if self._gpu:
            mark.record()
        self._marks.append((what, mark))

    def end(self) -> None:
        self.begin("")

    @property
    def over(self) -> bool:
        """Whether the device is through with it; never waits."""
        return not self._gpu or not self._marks or self._marks[-1][1].query()

    def seconds(self) -> Counter[str]:
        """By what was done, where it is `over`."""
        spent = Counter[str]()
        for (what, since), (_, until) in zip(self._marks, self._marks[1:]):
            if what:
                spent[what] += since.elapsed_time(until) / 1e3 if self._gpu else until - since
        return spent


class Spent:
    """The shares of the steps' time, of all steps that the device is through with since the last look: on a GPU the
    steps of a line of metrics are those up to the one before."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, tuple[Spans, ...]]] = []

    def add(self, seconds: float, *spans: Spans) -> None:
        """A step that took so many seconds in all, waits for data and the rest of the loop included."""
        self._steps.append((seconds, spans))

    def read(self) -> dict[str, float]:
        """`prepare_share`, `train_share`, `communicate_share`, `update_share`; {} where the device is through with no
        step."""
        spent, total, left = Counter[str](), 0.0, []
        for seconds, spans in self._steps:
            if not all(one.over for one in spans):
                left.append((seconds, spans))
                continue
            total += seconds
            for one in spans:
                spent += one.seconds()
        self._steps = left
        return {f"{what}_share": seconds / max(total, 1e-9) for what, seconds in spent.items()}
