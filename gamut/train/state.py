"""Where a run stands: the state of the last step taken, never of the loader's look-ahead."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gamut.errors import PlanError
from gamut.plan import Epoch
from gamut.train.objective import Moment


@dataclass(frozen=True)
class State:
    """Position in the plan and what was counted on the way there."""

    epoch: int = 0
    step: int = 0  # steps taken since the start of the run, skipped ones included
    step_in_epoch: int = 0
    draws: int = 0
    holes: int = 0
    holes_this_epoch: int = 0
    hole_reasons: dict[str, int] = field(default_factory=dict)  # of all holes so far
    skipped: int = 0  # steps taken but not applied, since something was not finite
    bad_in_a_row: int = 0
    loss_spikes: int = 0  # so far
    recent_losses: list[float] = field(default_factory=list)  # of the last applied steps: what a spike is measured by
    collapsed_in_a_row: int = 0
    generation: str = ""  # fingerprint of the index that the epoch is planned from; empty: that the run began with
    more_draws: int = 0  # that the epochs so far had beyond `epoch_draws` each, as the set has grown
    epoch_draws: int = 0  # of epoch 0: the batch size of the learning-rate rule is their quotient
    epoch_steps: int = 0  # of an epoch in blocks a forecast, by its first block

    @classmethod
    def read(cls, values: dict[str, Any]) -> State:
        """What `as_dict` gave, of this version or an earlier one, which called loss spikes `leaps`."""
        return cls(**{"loss_spikes" if name == "leaps" else name: value for name, value in values.items()})

    def next_epoch(self, draws: int) -> State:
        """At the border of an epoch that had so many draws."""
        more = self.more_draws + draws - self.epoch_draws
        return replace(self, epoch=self.epoch + 1, step_in_epoch=0, holes_this_epoch=0, more_draws=more)

    def draws_at(self, epoch: Epoch, step: int) -> int:
        """Draws of the run before a step of its epoch."""
        return self.epoch_draws * self.epoch + self.more_draws + epoch.draws_before(step)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def machine(threads: int, device: torch.device) -> dict[str, Any]:
    """What a bitwise continuation depends on besides the program."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"threads": threads, "processor": kind, "torch": torch.__version__}


def processor() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or os.uname().machine


def beginning(first: Epoch) -> State:
    """The state of a run that has not begun. Every epoch has the draws of the first, unless the set grows."""
    if not first.draws:
        raise PlanError("The plan has no clips: look at the recipe's `subset` and at the shard set.")
    return State(epoch_draws=first.draws, epoch_steps=first.forecast().steps)


def moment(state: State, epoch: Epoch, epochs: int) -> Moment:
    """Where the run stands before its next step. Each epoch is an equal share of the run, whatever its draws."""
    before = epoch.draws * state.epoch + epoch.draws_before(state.step_in_epoch)
    return Moment(state.epoch, state.step, state.step_in_epoch, before / (epoch.draws * epochs))


def crosses(at: Moment, epoch: Epoch, every: float) -> bool:
    """Whether the step that begins `at` crosses a multiple of `every` epochs (0: never)."""
    if every <= 0:
        return False
    tiny = 1e-9  # a multiple that rounding put just below its step

    def share(step: int) -> float:
        """Of the epoch, before the step: in steps, or where their number is not known yet in draws."""
        return step / epoch.steps if epoch.blocks == 1 else epoch.draws_before(step) / epoch.draws

    before = (at.epoch + share(at.step_in_epoch)) / every
    after = (at.epoch + share(at.step_in_epoch + 1)) / every
    return int(after + tiny) > int(before + tiny)
