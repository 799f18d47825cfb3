"""The teacher: an fp32 exponential moving average of the student, how fast it follows and how sharp it is."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from gamut.recipe import schema
from gamut.train.partitions import is_cut, partition


def momentum(base: float, fraction: float) -> float:
    """The teacher's EMA momentum: a half cosine from `base` at the start of the run to 1 at its end."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * fraction) + 1.0) / 2.0


def temperature(asit: schema.Asit, done: float) -> float:
    """Of the teacher's softmax after `done` epochs: linear from its start to its end over so many (published code)."""
    start, end, epochs = asit.teacher_temperature_start, asit.teacher_temperature, asit.teacher_temperature_epochs
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
        assert partition(slow).shape == partition(fast).shape, f"teacher and student are cut differently at {name}"
        mine.append(partition(slow))
        theirs.append(partition(fast).float())
    torch._foreach_lerp_(mine, theirs, 1.0 - momentum)
