"""Schedules: every one a function of the fraction of the run's draws that came before the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gamut.recipe import schema

LONGEST_WARMUP = 0.25  # of the run


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from `start` at fraction 0 to `end` at fraction 1."""
    return end + (start - end) * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2.0


def is_due(epochs_done: int, epochs: int, every: float) -> bool:
    """Whether this is the end of an epoch that counts: of every `every`th and of the last; 0: of none."""
    return every > 0 and (epochs_done % max(1, round(every)) == 0 or epochs_done == epochs)


@dataclass(frozen=True)
class Schedule:
    """Learning rate (a linear warm-up, then a cosine to `lr_end` or falls by `gamma`) and weight decay (a cosine)."""

    batch: float  # clips a global step, draws / steps of epoch 0: the batch size of the learning-rate rule
    peak: float  # learning rate at the end of the warm-up
    optim: schema.Optim
    epochs: int
    warmup: float  # fraction of the run
    notes: tuple[str, ...] = ()  # what was changed of the recipe's wish, as sentences

    @classmethod
    def of(cls, optim: schema.Optim, epochs: int, draws: int, steps: int) -> Schedule:
        """The schedules of a run of `epochs` epochs whose epoch 0 has `draws` draws in `steps` steps.

        The rate follows the batch linearly (Goyal et al. 2017), or by its square root (for Adam, Malladi et al. 2022).
        """
        batch = draws / max(steps, 1)
        times = batch / optim.lr_base_batch if optim.lr_base_batch else 1.0
        peak = optim.lr * (math.sqrt(times) if optim.lr_rule == "sqrt" else times)
        wished, unit = optim.warmup_epochs, "epochs"
        if optim.warmup_steps is not None:
            wished, unit = optim.warmup_steps, "steps"
        whole = epochs if unit == "epochs" else epochs * max(steps, 1)
        warmup = wished / whole
        notes: tuple[str, ...] = ()
        if warmup > LONGEST_WARMUP:
            notes = (
                f"The warm-up of {wished:g} {unit} is longer than a quarter of the run's {whole} {unit}: "
                f"it is cut to {LONGEST_WARMUP * whole:g} {unit}.",
            )
            warmup = LONGEST_WARMUP
        return cls(batch, peak, optim, epochs, warmup, notes)

    def lr(self, fraction: float) -> float:
        """Learning rate at `fraction` of the run, before a group's own scale.

        `gamma` is MultiStepLR's rule as AST uses it: once `gamma_from` epochs are done, and after every `gamma_every`
        more, the rate falls by that factor. The warm-up comes on top, as there.
        """
        optim = self.optim
        if optim.schedule == "gamma":
            done = math.floor(fraction * self.epochs + 1e-9)  # a multiple that rounding put just below its epoch
            falls = (done - optim.gamma_from) // optim.gamma_every + 1 if done >= optim.gamma_from else 0
            rate = self.peak * optim.gamma**falls
        else:
            rate = cosine(self.peak, optim.lr_end, (fraction - self.warmup) / (1.0 - self.warmup))
        if fraction >= self.warmup:
            return rate
        warm = optim.warmup_start + (1.0 - optim.warmup_start) * fraction / self.warmup
        return (self.peak if optim.schedule == "cosine" else rate) * warm

    def decay(self, fraction: float) -> float:
        """Weight decay at `fraction` of the run, before a group's own scale."""
        return cosine(self.optim.weight_decay, self.optim.weight_decay_end, fraction)
