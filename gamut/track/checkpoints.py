"""The folder of a run's checkpoints: `step-00000100/` after 100 steps, and `latest`, the name of the newest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gamut.errors import CheckpointError

LATEST = "latest"  # for people and scripts too; a run that goes on looks at the checkpoints themselves
STATE = "state.json"  # of a checkpoint: where the run stood


def step_name(step: int) -> str:
    """The folder of what belongs to a step: a checkpoint, or a probe that is not scored yet."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a folder's name says; -1 where it says none."""
    found = re.fullmatch(r"step-(\d{8,})", path.name)
    return int(found[1]) if found else -1


@dataclass(frozen=True)
class Checkpoints:
    """`RUN/checkpoints/`, there or not."""

    folder: Path

    def place(self, step: int) -> Path:
        """Of a step's checkpoint."""
        return self.folder / step_name(step)

    def saved(self) -> list[Path]:
        """The checkpoint folders, newest first, verified or not."""
        return sorted(steps_in(self.folder), key=step_of, reverse=True)

    def newest(self) -> Path:
        """The one that `latest` names. Raises CheckpointError where there is none (any more)."""
        latest = self.folder / LATEST
        try:
            name = latest.read_text().strip()
        except OSError as error:
            raise CheckpointError(
                f"The run {self.folder.parent} has published no checkpoint yet, or they were removed: no {latest}."
            ) from error
        if not name or Path(name).name != name or not (self.folder / name).is_dir():
            raise CheckpointError(f"{latest} names {name!r}, and there is no such checkpoint beside it (any more).")
        return self.folder / name


def steps_in(folder: Path) -> list[Path]:
    """The folders of steps in a folder, in no order."""
    return [path for path in folder.glob("step-*") if step_of(path) >= 0 and path.is_dir()]


def epochs_at(checkpoint: Path) -> tuple[int, float] | None:
    """(step, epochs done) as the checkpoint's state says; None where it has none, as weights alone."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_bytes())["state"]
        part = state["step_in_epoch"] / max(state["epoch_steps"], 1)
        return int(state["step"]), float(state["epoch"] + part)
    except (OSError, ValueError, KeyError, TypeError):
        return None
