"""The teacher: an fp32 exponential moving average of the student, and the centres of its outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from gamut.train.parts import is_cut, part


def momentum(base: float, fraction: float) -> float:
    """The teacher's EMA momentum: a half cosine from `base` at the start of the run to 1 at its end."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * fraction) + 1.0) / 2.0


def temperature(end: float, start: float | None, epochs: float, done: float) -> float:
    """The teacher's temperature after `done` epochs: linear from `start` to `end` over so many (published code)."""
    if start is None or done >= epochs:
        return end
    return start + (end - start) * done / epochs


def make_teacher(student: nn.Module) -> nn.Module:
    """A frozen fp32 copy in evaluation mode."""
    teacher = copy.deepcopy(student).float().eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def move(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in fp32, each rank the parts that it holds.

    A bf16 average would never move: at 0.996 and above the change is below its resolution.
    """
    mine: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    for (name, slow), (other, fast) in zip(teacher.named_parameters(), student.named_parameters(), strict=True):
        assert name == other, f"the teacher's {name} stands where the student has {other}"
        assert slow.dtype == torch.float32, f"the teacher's {name} is {slow.dtype}, not float32"
        assert is_cut(slow) == is_cut(fast), f"of {name} only one of teacher and student is cut over the ranks"
        assert part(slow).shape == part(fast).shape, f"teacher and student are cut differently at {name}"
        mine.append(part(slow))
        theirs.append(part(fast).float())
    torch._foreach_lerp_(mine, theirs, 1.0 - momentum)


class Centre:
    """Running mean of the teacher's outputs, one vector [K], moved once a global step (ASiT section III-D, DINO).

    Sums and counts gather over micro-steps; all micro-steps of a step use the old centre.
    """

    def __init__(self, width: int, momentum: float, device: torch.device) -> None:
        self.value = torch.zeros(width, device=device)
        self.coming = self.value  # what it moves to if the step is applied
        self.momentum = momentum
        self.sum = torch.zeros(width + 1, dtype=torch.float64, device=device)  # the last entry counts rows

    def add(self, logits: torch.Tensor) -> None:
        """Gather a micro-step's teacher outputs [n, K]."""
        self.sum[:-1] += logits.sum(0, dtype=torch.float64)
        self.sum[-1] += len(logits)

    def take(self, total: torch.Tensor) -> None:
        """Compute where the sums of all ranks move it."""
        mean = (total[:-1] / total[-1].clamp_min(1.0)).float()
        moved = self.value * self.momentum + mean * (1.0 - self.momentum)
        self.coming = torch.where(total[-1] > 0, moved, self.value)

    def move(self) -> None:
        """The step was applied."""
        self.value = self.coming

    def drop(self) -> None:
        """Forget what was gathered."""
        self.sum.zero_()


class Spread:
    """How far the predictions of a global step differ: sum over k of the variance of p_k over its rows [n, K].

    0 where every row is the same distribution, whatever it is: a collapse that a cross-entropy does not show; 1 - 1/K
    where rows are certain, each of another prototype. Computed as the mean of |p|^2 less |mean of p|^2.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.value = 0.0  # of the last step that had rows
        self.share = 1.0  # of what it could be for rows as certain as these are: of the mean of |p|^2
        self.sum = torch.zeros(width + 2, dtype=torch.float64, device=device)  # the last two: of squares, of rows

    @torch.no_grad()
    def add(self, distribution: torch.Tensor) -> None:
        """Gather a micro-step's distributions, float32 [n, K]."""
        self.sum[:-2] += distribution.sum(0, dtype=torch.float64)
        self.sum[-2] += distribution.square().sum(dtype=torch.float64)
        self.sum[-1] += len(distribution)

    def take(self, total: torch.Tensor) -> None:
        """Compute it from the sums of all ranks, in CPU memory."""
        square, mean, rows = total[-2], total[:-2], float(total[-1])
        if not rows:
            self.share = 1.0  # nothing was predicted, so nothing alike
            return
        spread = (square / rows - (mean / rows).square().sum()).clamp_min(0.0)
        self.value, self.share = torch.stack([spread, spread * rows / square]).tolist()

    def drop(self) -> None:
        """Forget what was gathered."""
        self.sum.zero_()


def sum_up(gathered: Sequence[Centre | Spread]) -> None:
    """One all-reduce for all centres and spreads. A centre that saw no row will stay where it is."""
    joined = torch.cat([one.sum for one in gathered])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(joined)
    sizes = [len(one.sum) for one in gathered]
    here = joined.cpu()  # one wait for the device, however many spreads are read from it
    for one, total, copy_here in zip(gathered, joined.split(sizes), here.split(sizes), strict=True):
        one.take(copy_here if isinstance(one, Spread) else total)
        one.drop()
