"""Which folders under a folder are runs, checkpoints, caches of features and exported weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from gamut.errors import RunError, nearest
from gamut.features.folder import ABOUT
from gamut.runs.slurm import FOLDER, newest_job
from gamut.track.checkpoints import MANIFEST, STATE
from gamut.track.run import METRICS, RECIPE, RECORD, ROUND, RunFolder

INSIDE = {"checkpoints", "figures", "logs", "plan", "trace"}  # of a run: no runs are in these


@dataclass
class Found:
    """Folders by what they are, each kind in the order of names."""

    runs: list[Path] = field(default_factory=list)  # a round of a fine-tuning is one
    checkpoints: list[Path] = field(default_factory=list)  # outside of runs
    caches: list[Path] = field(default_factory=list)
    exported: list[Path] = field(default_factory=list)
    submitted: list[Path] = field(default_factory=list)  # to SLURM: runs, those that have not begun too
    closed: list[Path] = field(default_factory=list)  # could not be looked into

    @property
    def empty(self) -> bool:
        return not any((self.runs, self.checkpoints, self.caches, self.exported))

    @property
    def groups(self) -> list[tuple[Path, list[Path]]]:
        """(run, its rounds) of each run: a fine-tuning has rounds, the others none."""
        groups: dict[Path, list[Path]] = {}
        for run in self.runs:
            if ROUND.fullmatch(run.name) and run.parent not in self.runs:
                groups.setdefault(run.parent, []).append(run)
            else:
                groups.setdefault(run, [])
        return sorted(groups.items())


def is_run(folder: Path, names: set[str]) -> bool:
    """Whether a folder with these names in it is a run, whole or what is left of one."""
    return bool({RECORD, METRICS} & names) or (RECIPE in names and "checkpoints" in names)


def look(folder: Path) -> Found:
    """What is in a folder, at any depth; the folder itself may be one of these. Raises RunError where it is none."""
    if not folder.is_dir():
        beside = [path.name for place in (folder.parent, Path("runs")) for path in place.glob("*")]
        raise RunError(
            f"{folder} is not a folder{nearest(folder.name, beside)}. Name a folder of runs, a run, a checkpoint or a "
            "cache of features."
        )
    found = Found()
    for place, folders, files in os.walk(folder, onerror=lambda error: found.closed.append(Path(error.filename))):
        path, names = Path(place), {*folders, *files}
        folders.sort()
        if FOLDER in names and newest_job(path):
            found.submitted.append(path)
            folders.remove(FOLDER)
        if is_run(path, names):
            found.runs.append(path)
            folders[:] = [name for name in folders if name not in INSIDE]
        elif ABOUT in names and "index" in names:
            found.caches.append(path)
            folders.clear()
        elif MANIFEST in names and (STATE in names or path.name.startswith("step-")):
            found.checkpoints.append(path)
            folders.clear()
        elif MANIFEST in names and any(name.endswith(".safetensors") for name in names):
            found.exported.append(path)
    return found


def run_at(place: Path) -> tuple[Path, list[Path]]:
    """(run, its rounds): the run that a folder is, or that has it as a round. Raises RunError where it is neither."""
    found = look(place)
    here = [(run, rounds) for run, rounds in found.groups if run == place]
    if here:
        return here[0]
    if place in found.runs:  # a round, by itself
        return place, []
    under = sorted(found.runs, key=lambda run: len(run.parts))[:5]
    raise RunError(f"{place} is not a run. Runs under it: {', '.join(map(str, under)) or 'none'}.")


def checkpoints_of(run: Path) -> list[Path]:
    """Newest first, verified or not."""
    return RunFolder(run).checkpoints.saved()
