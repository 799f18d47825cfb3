"""Clips that turn out unusable while a run goes on: counted by reason, listed in the run folder, limited."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gamut.data.batch import Hole
from gamut.errors import RunError
from gamut.files import refusal
from gamut.train.state import State
from gamut.train.world import World

FILE = "holes.jsonl"
SHOWN = 20  # names in a message


@dataclass(frozen=True)
class _Line:
    """A line of holes.jsonl: a planned clip that was left out, and of which step."""

    step: int  # of the run, from 1, as in metrics.jsonl
    epoch: int
    row: int
    key: str
    reason: str

    def dump(self) -> bytes:
        return json.dumps(vars(self)).encode() + b"\n"


class _Told(NamedTuple):
    """What is said of an epoch's holes: how many of each reason, and the first ones. Its size does not grow."""

    reasons: Counter[str]
    first: list[_Line]

    def add(self, lines: list[_Line]) -> None:
        self.reasons.update(line.reason for line in lines)
        self.first.extend(lines[: SHOWN - len(self.first)])


class Holes:
    """Counts the holes of a run and writes each into `folder`/holes.jsonl, once, however often the run restarts.

    All ranks make one, at the moment that they resume from `state`; what an attempt before this one wrote beyond that
    step is undone, since those steps come again. Raises RunError on every rank where the file cannot be read or
    written.
    """

    def __init__(self, folder: Path, share: float, state: State, world: World) -> None:
        self.path = folder / FILE
        self.share = share  # of an epoch's draws that may be holes
        self.world = world
        self.total = state.holes
        self.this_epoch = state.holes_this_epoch
        self.reasons = Counter(state.hole_reasons)
        self._unsynced = False
        told = _Told(Counter(), [])
        problem: Exception | None = None
        if world.first:
            try:
                self._take_up(state.step, state.epoch, told)
            except (RunError, OSError) as error:
                problem = error
        world.agree(problem, f"take up {self.path}")
        self._epoch = world.broadcast(told)

    def _take_up(self, step: int, epoch: int, told: _Told) -> None:
        """Cut the file back to the lines of steps up to `step`, and take in those of this epoch."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            end = self._read(file, step, epoch, told)
            length = os.fstat(file.fileno()).st_size
        if end < length:
            os.truncate(self.path, end)

    def _read(self, file: BinaryIO, step: int, epoch: int, told: _Told) -> int:
        """The byte behind the last line that is kept."""
        end = 0
        for raw in file:
            try:
                line = _Line(**json.loads(raw))
            except (ValueError, TypeError):
                if not raw.endswith(b"\n"):
                    break  # torn by a kill
                raise RunError(
                    f"{self.path} is damaged at byte {end}: {raw[:60]!r} is not a line about a hole. Repair or remove "
                    "it."
                ) from None
            if line.step > step or not raw.endswith(b"\n"):
                break
            if line.epoch == epoch:
                told.add([line])
            end += len(raw)
        return end

    @property
    def counts(self) -> dict[str, float]:
        """Metrics: all holes of the run so far, and of each reason that has occurred."""
        values: dict[str, float] = {"holes": self.total}
        return values | {f"holes/{reason}": count for reason, count in sorted(self.reasons.items())}

    def new_epoch(self) -> None:
        self.this_epoch = 0
        self._epoch = _Told(Counter(), [])

    def add(self, count: int, found: list[Hole], step: int, epoch: int, draws: int) -> None:
        """Count a step's holes: `count` over all ranks, `found` on this one, of an epoch of `draws` draws.

        Raises RunError on every rank past the limit, with the list.
        """
        if not count:
            return
        holes = sorted(
            ((hole.row, hole.key, hole.reason) for part in self.world.gather(found) for hole in part),
        )  # by row: the file does not depend on the number of ranks
        lines = [_Line(step, epoch, *hole) for hole in holes]
        self.total += count
        self.this_epoch += count
        self.reasons.update(line.reason for line in lines)
        self._epoch.add(lines)
        self.world.agree(self._append(lines) if self.world.first else None, "list unusable clips")
        if self.this_epoch > self.share * draws:
            self._refuse(draws)

    def _append(self, lines: list[_Line]) -> RunError | None:
        try:
            with open(self.path, "ab", buffering=0, opener=_private) as file:
                file.write(b"".join(line.dump() for line in lines))
            self._unsynced = True
        except OSError as error:
            return RunError(
                f"{refusal(error, self.path, sum(len(line.dump()) for line in lines))} Free some space or fix the "
                "folder's permissions, and start the run again: it resumes from its newest checkpoint."
            )
        return None

    def sync(self) -> None:
        """Make the lines so far durable: called before a checkpoint that counts them."""
        if self._unsynced:
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
            self._unsynced = False

    def _refuse(self, draws: int) -> None:
        self.sync()
        counted = ", ".join(f"{count} {reason}" for reason, count in self._epoch.reasons.most_common())
        shown = ", ".join(f"{line.key} ({line.reason})" for line in self._epoch.first)
        left = self._epoch.reasons.total() - len(self._epoch.first)
        more = f" and {left} more" if left else ""
        raise RunError(
            f"{self.this_epoch} of {draws} clips of this epoch cannot be used, more than the recipe allows "
            f"(loader.max_holes={self.share:g}; {counted}): {shown}{more}. All of them are listed in {self.path}. Run "
            "`python -m gamut.shards verify` on the shard set, which says how to mend it, or raise loader.max_holes."
        )

    def said(self) -> str:
        """A sentence for the end of a run; empty where there were none."""
        if not self.total:
            return ""
        counted = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.total} planned clips were left out as unusable ({counted}): {self.path}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
