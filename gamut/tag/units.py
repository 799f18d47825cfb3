"""What tags of times are made of: means of all blocks' outputs over units of a recording, of 0.4 s unless the head was
trained on others."""

from __future__ import annotations

import itertools
import math
import sys

import torch

from gamut.errors import RecipeError
from gamut.models.whisper import STEP
from gamut.numbers import RATE

UNIT = 20  # steps: 0.4 s (Gong et al. 2023, section 3)


def units_of(seconds: float, unit: int = UNIT) -> int:
    """How many units of so many steps a time is. Raises RecipeError where it is no multiple of one."""
    one = unit * STEP / RATE
    units = seconds / one
    if not math.isfinite(units) or round(units) < 1 or abs(units - round(units)) > 1e-6:
        raise RecipeError(f"--every must be a multiple of {one:g} s for this model, not {seconds:g} s.")
    return round(units)


class Units:
    """Sums over windows of one recording, as they come: windows may overlap, and then a step counts once, from the
    first window that had it. Steps behind the recording's end, where a window is silence, do not count.

    Only units that are not yet taken are held.
    """

    def __init__(self, samples: int | None, unit: int = UNIT) -> None:
        """samples: of the recording; None: not known until it `ends`."""
        self._unit = unit  # steps
        self.ends(sys.maxsize if samples is None else samples)
        self._known = 0  # steps that were seen
        self._taken = 0  # units that were given away
        self._sums: list[torch.Tensor] = []  # float32 [L, D] a unit, from unit `_taken` on

    @property
    def count(self) -> int:
        """Units of the whole recording; the last may be of fewer steps."""
        return -(-self.steps // self._unit)

    def ends(self, samples: int) -> None:
        """So many samples the recording has."""
        self.steps = -(-samples // STEP)

    def room(self, first: int, steps: int) -> tuple[int, int]:
        """Which steps [begin, end) of a window of so many, whose first is step `first` of the recording, are new."""
        begin = max(self._known - first, 0)
        return begin, max(min(first + steps, self.steps) - first, begin)

    def pass_over(self, first: int, steps: int) -> None:
        """A window whose output nobody wants: it is known, and nothing of it is held."""
        self._known = first + self.room(first, steps)[1]

    def add(self, first: int, blocks: list[torch.Tensor]) -> None:
        """Take in a window: the output [steps, D] of every block."""
        begin, end = self.room(first, len(blocks[0]))
        if begin == end:
            return
        low, high = (first + begin) // self._unit, (first + end - 1) // self._unit
        unit = (torch.arange(first + begin, first + end) // self._unit - low).to(blocks[0].device)
        empty = torch.zeros(high - low + 1, blocks[0].shape[1], device=blocks[0].device)
        sums = torch.stack([empty.index_add(0, unit, one[begin:end].float()) for one in blocks])
        for number, part in enumerate(sums.cpu().unbind(1), low):  # the device is waited for once a window
            at = number - self._taken
            if at < len(self._sums):
                self._sums[at] = self._sums[at] + part
            else:
                self._sums.append(part)
        self._known = first + end

    def take(self, units: int, rest: bool = False) -> torch.Tensor | None:
        """float32 [L, units, D], the next so many units' means, once all their steps are known; with `rest`, at the end
        of the recording, those that are left, if any."""
        last = min(self._taken + units, self.count)
        whole = last * self._unit <= self._known or self._known == self.steps
        if last == self._taken or not whole or (last < self._taken + units and not rest):
            return None
        bounds = [min(number * self._unit, self.steps) for number in range(self._taken, last + 1)]
        counts = [end - begin for begin, end in itertools.pairwise(bounds)]
        means = [total / count for total, count in zip(self._sums, counts)]
        del self._sums[: len(means)]
        self._taken = last
        return torch.stack(means, 1)
