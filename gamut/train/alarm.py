"""Runs that go wrong without an error: a loss that spikes, a teacher that says the same of everything."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gamut import files
from gamut.errors import RunError
from gamut.recipe import schema
from gamut.train.state import State
from gamut.train.world import World

WINDOW = 64  # applied steps whose losses are looked back on
LEAST = 16  # of them, before anything is called a spike
FLOOR = 0.01  # a spread is at least this share of the median
NOTES = "left_out.json"  # in the run folder: [[first, last], ...] steps that are not trained on
MOST_RETURNS = 5


def is_spike(loss: float, recent: list[float], factor: float) -> bool:
    """Whether a loss is more than `factor` spreads above the median of the recent ones.

    The spread is 1.4826 times their median distance from the median (a standard deviation, for a normal
    distribution, which a few outliers do not change), and at least a hundredth of the median.
    """
    if not factor or len(recent) < LEAST:
        return False
    middle = statistics.median(recent)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in recent)
    return loss > middle + factor * max(spread, FLOOR * abs(middle))


class Checkpoints(Protocol):
    """What going back needs of them (`gamut.train.checkpoint.Keeper`), on rank 0."""

    def back(self, step: int) -> int:
        """Remove those after a step; what step the newest one left is of."""
        ...

    def oldest(self) -> int:
        """What step the oldest is of; 0 where there is none."""
        ...


class Alarm:
    """Judges every step before its update, on all ranks alike: they see the same sums.

    `recent` and `in_a_row` are part of the run's state, so that a resumed run judges as one that never stopped.
    """

    def __init__(
        self, guard: schema.Guard, state: State, folder: Path, world: World, collapsed: Callable[[dict], str]
    ) -> None:
        self.guard = guard
        self.path = folder / NOTES
        self.world = world
        self.collapsed = collapsed
        self.recent = list(state.recent_losses)
        self.in_a_row = state.collapsed_in_a_row
        self.loss_spikes = state.loss_spikes
        self.trouble = ""  # of the step that was judged last
        self.steps = 1  # that the trouble has lasted
        self.ranges = self._read()

    def _read(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        problem: RunError | None = None
        if self.world.first and self.path.exists():
            try:
                found = [(int(first), int(last)) for first, last in json.loads(self.path.read_bytes())]
            except (OSError, ValueError, TypeError) as error:
                problem = RunError(
                    f"{self.path}, which lists steps that are not trained on, cannot be read ({error}). Mend it, such "
                    "as [[120, 129]], or remove it to train on all."
                )
        self.world.agree(problem, "read which steps are left out")
        return self.world.broadcast(found)

    def leaves_out(self, step: int) -> bool:
        """Whether a step (numbered from 0 through the run) is one of those that are not trained on."""
        return any(first <= step <= last for first, last in self.ranges)

    def allows(self, values: dict[str, float]) -> bool:
        """Whether the step with these metrics may be applied. Fills `trouble`."""
        self.trouble = ""
        flags = self.guard.policy == "flag"
        loss = values.get("loss")
        spiked = loss is not None and is_spike(loss, self.recent, self.guard.loss_spike)
        if spiked:
            middle = statistics.median(self.recent)
            self.trouble, self.steps = f"the loss spiked to {loss:.4g} from a median of {middle:.4g}", 1
            self.loss_spikes += 1
        if loss is not None and (flags or not spiked):  # a rise that is trained on and lasts is no spike for ever
            self.recent = [*self.recent, loss][-WINDOW:]
        said = self.collapsed(values)
        self.in_a_row = self.in_a_row + 1 if said else 0
        most = self.guard.collapse_steps
        # A warning comes once; the other policies may have been chosen, or `most` lowered, after more steps than that.
        if most and (self.in_a_row == most if flags else self.in_a_row >= most):
            self.trouble, self.steps = f"for {self.in_a_row} steps {said}", self.in_a_row
        return not self.trouble or flags

    def act(self, step: int, keeper: Checkpoints) -> bool:
        """After a step (from 0) that was judged: whether the attempt is to end, to go back behind the trouble's first.

        Raises RunError where the policy is to stop, where going back has not helped, and where no checkpoint is left
        from before the trouble.
        """
        if not self.trouble:
            return False
        if self.guard.policy == "flag":
            if self.world.first:
                print(f"warning: step {step + 1}: {self.trouble}.", flush=True)
            return False
        if self.guard.policy == "stop" or len(self.ranges) >= MOST_RETURNS:
            tried = f" The run has gone back {MOST_RETURNS} times already." if self.guard.policy == "back" else ""
            raise RunError(
                f"Step {step + 1}: {self.trouble}. It was not applied, and no checkpoint is newer than the last "
                f"saved.{tried} Lower optim.lr or optim.clip, go on from an earlier checkpoint, or set guard.policy to "
                "back (leave these steps out) or flag (go on)."
            )
        problem: Exception | None = None
        if self.world.first:
            try:
                # In this order: a kill between the two leaves a run that comes to the same spike, and decides the same.
                began = step + 1 - self.steps
                self._require_earlier(step, began, keeper.oldest())
                first = max(0, began + 1 - self.guard.leave_out)
                span = (max(first, keeper.back(first)), began)
                files.write_json(self.path, [*self.ranges, span])
                print(
                    f"step {step + 1}: {self.trouble}. Steps {span[0] + 1} to {span[1] + 1} will be left out: start "
                    "the run again; it resumes from its newest checkpoint.",
                    flush=True,
                )
            except OSError as error:
                problem = RunError(files.refusal(error, self.path))
            except RunError as error:
                problem = error
        self.world.agree(problem, "note the steps to leave out")
        return True

    def _require_earlier(self, step: int, began: int, oldest: int) -> None:
        if oldest > began:
            raise RunError(
                f"Step {step + 1}: {self.trouble}. That began with step {began + 1}, and the oldest checkpoint is of "
                f"step {oldest}: there is nothing to go back to. Start a run of another name with a larger "
                "checkpoint.keep or a smaller guard.collapse_steps, or set guard.policy to flag (go on)."
            )
