"""What a folder no longer needs: old checkpoints, and what was left by processes that died.

Of a run stay the newest checkpoint that verifies, those that are kept for good (kept.json), the weights that it stands
for, and everything that is no checkpoint. A run that is going on is not touched.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from gamut import files
from gamut.errors import CheckpointError, RunError
from gamut.features.folder import LOCKS
from gamut.runs.find import checkpoints_of, look
from gamut.runs.standing import size_of
from gamut.runs.words import of_bytes
from gamut.track.checkpoints import LATEST, REMOVING, SAVING, discard, verify
from gamut.track.run import LOCK, RunFolder

LEFTOVERS = (f"{SAVING}*", f"{REMOVING}*", f"*{files.TEMPORARY}")
ASIDE = "damaged-*"  # set aside when a run went on from an older checkpoint


@dataclass(frozen=True)
class Spare:
    """Something that may go."""

    path: Path
    why: str
    size: int


@dataclass(frozen=True)
class Plan:
    """What may go of one run or cache."""

    folder: Path
    spare: tuple[Spare, ...] = ()
    stays: str = ""  # why nothing, or what, stays
    newest: Path | None = None  # the checkpoint that verifies


def plan_of(folder: Path) -> list[Plan]:
    """For every run and cache in a folder, or the run whose checkpoints a folder has.

    Reads and hashes checkpoints, newest first, until one verifies. Raises RunError for a checkpoint of a run: what goes
    is decided among all of them.
    """
    found = look(folder)
    if (run := RunFolder.find(folder)) and folder.resolve().parent == run.checkpoints.folder.resolve():
        raise RunError(f"{folder} is one checkpoint of the run {run.path}: name the run, or the folder of checkpoints.")
    around = RunFolder.find(folder) if found.checkpoints and not found.runs else None
    alone = [] if around else found.checkpoints
    plans = [_run_plan(run) for run in found.runs or ([around.path] if around else [])]
    plans += [_cache_plan(cache) for cache in found.caches]
    return plans + [Plan(path, stays="is a checkpoint outside of a run: left alone") for path in alone]


def _run_plan(run: Path) -> Plan:
    try:
        if holder := RunFolder(run).holder():
            return Plan(run, stays=f"is in use by {holder}: left alone")
    except OSError as error:
        return Plan(run, stays=f"may be in use ({error}): left alone")
    return _idle_plan(run)


def _idle_plan(run: Path) -> Plan:
    """Of a run that nobody writes."""
    there = checkpoints_of(run)
    home = RunFolder(run).checkpoints.folder
    if not there:
        return Plan(run, _left(home))
    try:
        kept = RunFolder(run).checkpoints.noted()
    except CheckpointError as error:
        return Plan(run, stays=f"is left alone: {error}")
    bad: list[str] = []
    newest = None
    for path in there:
        try:
            verify(path)
        except CheckpointError:
            bad.append(path.name)
            continue
        newest = path
        break
    if newest is None:
        return Plan(run, stays=f"is left alone: none of its checkpoints verifies ({', '.join(bad)})")
    old = [path for path in there[len(bad) + 1 :] if path.name not in kept]
    spare = [Spare(path, "older than the newest good one", size_of(path)) for path in old]
    spare += [Spare(path, "set aside as damaged", size_of(path)) for path in sorted(home.glob(ASIDE))]
    stays = f"keeps {newest.name}"
    stays += f", and leaves {', '.join(bad)}, which does not verify" if bad else ""
    return Plan(run, (*spare, *_left(home)), stays, newest)


def _left(home: Path) -> tuple[Spare, ...]:
    """What an attempt that died while saving or removing left in the folder of checkpoints."""
    paths = sorted(path for pattern in LEFTOVERS for path in home.glob(pattern))
    return tuple(Spare(path, "left by a process that died", size_of(path) or path.lstat().st_size) for path in paths)


def _cache_plan(cache: Path) -> Plan:
    """Of a cache of features: files that nobody writes any more."""
    spare = []
    for path in [*sorted(cache.glob(f"*{files.TEMPORARY}")), *sorted(cache.glob(f"index/*{files.TEMPORARY}"))]:
        if _free(cache, path):
            spare.append(Spare(path, "left by a process that died", path.lstat().st_size))
    return Plan(cache, tuple(spare))


def _free(cache: Path, left: Path) -> bool:
    """Whether no process makes the shard, or the index, that a temporary file is of."""
    number = left.name.partition(".")[0]
    guard = cache / LOCKS / (number if number.isdigit() else "folder")
    if not guard.exists():
        return True
    try:
        with files.lock(guard, wait=False) as free:
            return free
    except OSError:
        return False


def print_plans(plans: list[Plan]) -> int:
    """Say what would go; returns the bytes."""
    total = 0
    for plan in plans:
        size = sum(spare.size for spare in plan.spare)
        total += size
        if plan.spare or plan.stays:
            print(f"{plan.folder} {plan.stays or 'has leftovers'}" + (f"; frees {of_bytes(size)}:" if size else ""))
        for spare in plan.spare:
            print(f"  {of_bytes(spare.size):>8}  {spare.path.relative_to(plan.folder)}  ({spare.why})")
    return total


def carry_out(plans: list[Plan]) -> tuple[int, list[str]]:
    """Remove what plans say, run by run under its lock: (bytes that were freed, what was left and why).

    A run that was started meanwhile is left alone; of one that has changed only what is still spare goes.
    """
    freed, left = 0, []
    for plan in plans:
        if not plan.spare:
            continue
        try:
            if plan.folder in (cache for cache in look(plan.folder).caches):
                freed += _remove_files(plan.spare)
                continue
            with files.lock(plan.folder / LOCK, wait=False, inherited=False) as idle:
                if not idle:
                    left.append(f"{plan.folder} has been started meanwhile: left alone")
                    continue
                freed += _remove(plan)
        except OSError as error:
            left.append(f"{plan.folder}: {error.strerror or error} ({error.filename})")
    return freed, left


def _remove(plan: Plan) -> int:
    now = _idle_plan(plan.folder)
    wanted = {spare.path for spare in plan.spare}
    spare = [one for one in now.spare if one.path in wanted]
    checkpoints = RunFolder(plan.folder).checkpoints
    if now.newest is not None:
        latest = checkpoints.folder / LATEST
        named = latest.read_text(errors="replace").strip() if latest.is_file() else ""
        if not (checkpoints.folder / named).is_dir() or checkpoints.folder / named in wanted or not named:
            files.write_text(latest, f"{now.newest.name}\n")
    for one in spare:
        if one.path.is_dir() and not one.path.name.startswith((SAVING, REMOVING)):
            discard(one.path)
    return sum(one.size for one in spare if not one.path.exists()) + _remove_files(
        tuple(one for one in spare if one.path.exists())
    )


def _remove_files(spare: tuple[Spare, ...]) -> int:
    freed = 0
    for one in spare:
        if one.path.is_dir():
            shutil.rmtree(one.path)
        else:
            one.path.unlink(missing_ok=True)
        freed += one.size
    return freed
