"""What a run that is killed now and then has taken of steps, by its metrics file."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path


class Steps:
    """The steps in a metrics file, followed while it grows."""

    def __init__(self, file: Path) -> None:
        self.file, self.offset = file, 0
        self.last = 0
        self.taken: Counter[int] = Counter()
        self.times: list[tuple[int, int, float]] = []  # (attempt, step, time)

    def follow(self) -> int:
        """The last step so far."""
        if not self.file.exists():
            return 0
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            values = json.loads(line)
            if "loss" in values:
                self.last = values["step"]
                self.taken[self.last] += 1
                self.times.append((values["attempt"], self.last, values["time"]))
        return self.last

    @property
    def lost(self) -> int:
        return sum(self.taken.values()) - len(self.taken)

    def productive(self) -> float:
        """Seconds that the steps took which were not lost."""
        took: dict[int, float] = {}
        for before, now in zip(self.times, self.times[1:]):
            if now[0] == before[0] and now[2] >= before[2]:  # else the clock went back
                took[now[1]] = now[2] - before[2]
        usual = statistics.median(took.values())
        return sum(took.get(step, usual) for step in self.taken)
