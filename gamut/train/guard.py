"""Guards of a run: bad steps, replicas that diverge, garbage collection at random times."""

from __future__ import annotations

import gc
from types import TracebackType

import torch

from gamut.data.batch import PackedBatch
from gamut.errors import MachineError, RunError
from gamut.train.world import World

MOST_BAD_STEPS = 5  # in a row
SHOWN = 20  # clips in a message
NAMES = 5  # of tensors in a message
CHUNK = 1 << 22  # numbers hashed at once, in int64
WORDS = {4: torch.int32, 2: torch.int16, 1: torch.uint8, 8: torch.int64}


class BadSteps:
    """Counts steps that were not applied since a loss or a gradient was not finite."""

    def __init__(self, world: World, index: object, skipped: int = 0, in_a_row: int = 0) -> None:
        self.world = world
        self.index = index
        self.skipped = skipped  # in the whole run
        self.in_a_row = in_a_row

    def good(self) -> None:
        self.in_a_row = 0

    def bad(self, step: int, batches: list[PackedBatch], finite: list[bool]) -> None:
        """Count a step that was not applied; every rank calls it with its micro-batches and which losses were finite.

        Raises RunError, on every rank, at the fifth in a row, naming the clips of the micro-batches whose loss was not
        finite, or all clips of the step where only the gradients were not.
        """
        self.skipped += 1
        self.in_a_row += 1
        suspects = [b for b, good in zip(batches, finite, strict=True) if not good]
        mine = [int(row) for batch in suspects for row in batch.row]
        everything = [int(row) for batch in batches for row in batch.row]
        if self.in_a_row < MOST_BAD_STEPS:
            return
        parts = self.world.gather((mine, everything))
        by_loss = [row for part in parts for row in part[0]]
        rows = by_loss or [row for part in parts for row in part[1]]
        what = "loss" if by_loss else "gradient"
        raise RunError(
            f"Step {step} is the {self.in_a_row}th in a row whose {what} is not finite; none of them was applied, and "
            f"weights and optimiser are as before the first. The clips of this step: {named(self.index, rows)}. Look "
            "at these clips, lower optim.lr or optim.clip, or go on from an earlier checkpoint."
        )


def named(index: object, rows: list[int]) -> str:
    """Keys of clips for a message, the first few."""
    key = getattr(index, "key", None)
    names = [str(key(row)) if key is not None else f"row {row}" for row in rows[:SHOWN]]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return (", ".join(names) or "none") + more


@torch.no_grad()
def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """int64 [] on the tensor's device: the sum of its bits as integers, each times an odd number of its place, modulo
    2^64. Any one changed element changes it, whichever bits of it and in whatever type."""
    words = tensor.detach().contiguous().reshape(-1).view(WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].to(torch.int64)
        places = torch.arange(start, start + len(part), dtype=torch.int64, device=tensor.device)
        total += (part * (2 * places + 1)).sum()
    return total


def compare_replicas(world: World, tensors: dict[str, torch.Tensor], step: int) -> None:
    """Raise MachineError on every rank where a tensor is not the same on all, naming it. All ranks call it together."""
    if world.size == 1 or not tensors:
        return
    mine = torch.stack([fingerprint(tensor).to(world.device) for tensor in tensors.values()]).tolist()
    everyone = world.gather(mine)
    apart = [name for name, *values in zip(tensors, *everyone, strict=True) if len(set(values)) > 1]
    if not apart:
        return
    place = list(tensors).index(apart[0])
    values = [rank[place] for rank in everyone]
    odd = [rank for rank, value in enumerate(values) if values.count(value) <= world.size // 2]
    if len(odd) == world.size:  # two ranks, or no majority: none can be told from the others
        odd = []
    more = f" and {len(apart) - NAMES} more" if len(apart) > NAMES else ""
    machines = "leave the machine of the odd rank out" if odd else "try other machines"
    whom = f"ranks {', '.join(map(str, odd))} against the others" if odd else "the ranks"
    raise MachineError(
        f"After step {step} the ranks no longer have the same {', '.join(apart[:NAMES])}{more} ({whom}): a memory, a "
        "network or a program has failed, and what was computed since the last comparison cannot be trusted. Start "
        f"the run again: it resumes from its newest checkpoint; {machines} if it happens again."
    )


class Garbage:
    """Collects Python's garbage at step boundaries only, so that ranks do not stall each other at random times."""

    EVERY = 100  # steps

    def __enter__(self) -> Garbage:
        gc.collect()
        gc.freeze()  # what is alive now stays: models, plans, modules
        gc.disable()
        self._settled = False
        return self

    def after_step(self, step: int) -> None:
        if step % self.EVERY == 0:
            gc.collect()
            if not self._settled:  # the engine, the first steps and MLflow have brought along more of that
                gc.freeze()
                self._settled = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.enable()
        gc.unfreeze()
