"""Schedules: every one a function of the fraction of the run's draws that came before the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gamut.recipe import schema

LONGEST_WARMUP = 0.25  # of the run


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from `start` at fraction 0 to `end` at fraction 1."""
    return end + (start - end) * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2.0


@dataclass(frozen=True)
class Schedule:
    """Learning rate (linear warm-up from 0, then a cosine to `lr_end`) and weight decay (a cosine)."""

    batch: float  # clips a global step, draws / steps of epoch 0: the batch size of the learning-rate rule
    peak: float  # learning rate at the end of the warm-up
    lr_end: float
    warmup: float  # fraction of the run
    weight_decay: float
    weight_decay_end: float
    notes: tuple[str, ...] = ()  # what was changed of the recipe's wish, as sentences

    @classmethod
    def of(cls, optim: schema.Optim, epochs: int, draws: int, steps: int) -> Schedule:
        """The schedules of a run of `epochs` epochs whose epoch 0 has `draws` draws in `steps` steps."""
        batch = draws / max(steps, 1)
        peak = optim.lr * batch / optim.lr_base_batch if optim.lr_base_batch else optim.lr
        warmup = optim.warmup_epochs / epochs
        notes: tuple[str, ...] = ()
        if warmup > LONGEST_WARMUP:
            notes = (
                f"The warm-up of {optim.warmup_epochs:g} epochs is longer than a quarter of the run's {epochs} epochs: "
                f"it is cut to {LONGEST_WARMUP * epochs:g} epochs.",
            )
            warmup = LONGEST_WARMUP
        return cls(batch, peak, optim.lr_end, warmup, optim.weight_decay, optim.weight_decay_end, notes)

    def lr(self, fraction: float) -> float:
        """Learning rate at `fraction` of the run, before a group's own scale."""
        if fraction < self.warmup:
            return self.peak * fraction / self.warmup
        return cosine(self.peak, self.lr_end, (fraction - self.warmup) / (1.0 - self.warmup))

    def decay(self, fraction: float) -> float:
        """Weight decay at `fraction` of the run, before a group's own scale."""
        return cosine(self.weight_decay, self.weight_decay_end, fraction)
