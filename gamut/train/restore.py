"""A run taken up again: from the newest of its checkpoints that verifies, which is compared before it is restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from gamut.errors import CheckpointError, PlanError, ShardError
from gamut.files import appears
from gamut.models.find import OBJECTIVE
from gamut.recipe.resolved import decisive, differences, recorded
from gamut.track.checkpoints import LATEST, STATE, Checkpoints, discard, read_verified, remove_leftovers, verify
from gamut.track.metrics import History
from gamut.track.run import METRICS
from gamut.train.checkpoint import VERSION, Keeper
from gamut.train.copies import copy
from gamut.train.engine import named
from gamut.train.state import State, machine


def resume(keeper: Keeper) -> State | None:
    """Restore the newest checkpoint that verifies; None where the run has never saved one.

    A damaged one is reported, set aside and passed over; where the run's folder has none that verifies, one is brought
    back from where they are copied to (`checkpoint.copy_to`). Raises CheckpointError where there are checkpoints and
    none verifies, or where the one found is of another recipe, model or engine; PlanError where it is of another
    plan, naming the field. Nothing is restored in part: everything is compared before any tensor is copied.
    """
    found: tuple[Path, dict[str, Any]] | None = None
    problem: Exception | None = None
    if keeper.world.first:
        try:
            remove_leftovers(keeper.folder)
            found = _newest_anywhere(keeper)
        except (CheckpointError, OSError) as error:
            problem = error
    keeper.world.agree(problem, "find a checkpoint")
    found = keeper.world.broadcast(found)
    if found is None:
        return None
    path, manifest = found
    state: State | None = None
    try:
        state = _restore(keeper, path, manifest["files"])
    except (CheckpointError, PlanError, ShardError) as error:
        problem = error
    keeper.world.agree(problem, f"restore {path}")
    keeper.newest = path
    return state


def _newest_anywhere(keeper: Keeper) -> tuple[Path, dict[str, Any]] | None:
    """As `newest_verified`, of the run's folder or else of its copies. The newest is copied where it is not yet."""
    problem: CheckpointError | None = None
    found = None
    told = History.read(keeper.folder.parent / METRICS).checkpoint
    if told is not None:
        appears(keeper.checkpoints.place(int(told["step"])))
    try:
        found = newest_verified(keeper.folder)
    except CheckpointError as error:
        problem = error
    copies = keeper.copies
    if found is None and copies is not None:
        try:
            copied = newest_verified(copies.target.folder)
        except CheckpointError as error:
            raise CheckpointError(f"{problem or ''} {error}".strip()) from error
        if copied is not None:
            for damaged in copies.source.saved():
                set_aside(damaged)
            found = copy(copied[0], copies.source), copied[1]
            print(f"{found[0].name} is brought back from {copies.target.folder}", flush=True)
    if found is None and (problem is not None or told is not None):
        raise problem or gone(keeper.folder)
    if found is not None and copies is not None:
        copies.begin(found[0])
    return found


def _restore(keeper: Keeper, path: Path, entries: dict[str, Any]) -> State:
    record = json.loads(read_verified(path / STATE, entries[STATE]))
    keeper.go_on_with(record["state"].get("generation", ""))
    compare(keeper, path, record)
    extra = load_tensors(read_verified(path / OBJECTIVE, entries[OBJECTIVE]))
    own = f"rank-{keeper.world.rank:05d}.safetensors"
    if own not in entries:  # there are more ranks than there were; nothing draws from torch's generators anyway
        own = "rank-00000.safetensors"
    randomness = load_tensors(read_verified(path / own, entries[own]))
    keeper.engine.load(path, entries, record["engine"]["world"])
    keeper.objective.load_extra_state(extra)
    torch.set_rng_state(randomness["cpu"])
    if "cuda" in randomness and keeper.world.device.type == "cuda":
        torch.cuda.set_rng_state(randomness["cuda"], keeper.world.device)
    here = machine(keeper.world.threads, keeper.world.device)
    here |= {"ranks": keeper.world.size, "compiled": keeper.objective.compiled()}
    for key, value in (record["machine"] | {"ranks": record["engine"]["world"]}).items():
        if here[key] != value and keeper.world.first:
            print(
                f"warning: {path.name} was written with {key} = {value} and goes on with {here[key]}: the same "
                "clips in every step, but not bitwise the numbers of an uninterrupted run.",
                flush=True,
            )
    return State.read(record["state"])


def compare(keeper: Keeper, path: Path, record: dict[str, Any]) -> None:
    if record["version"] != VERSION:
        raise CheckpointError(f"{path} is of format {record['version']}; this program reads format {VERSION}.")
    for key, value in keeper.fingerprint.items():
        if record["plan"].get(key) != value:
            raise PlanError(
                f"{path} belongs to another plan: its {key} was {record['plan'].get(key)} and is now {value}. Go "
                "on with the data and the recipe that it was made with, or start a run of another name."
            )
    here, there = keeper.engine.signature(), record["engine"]
    if named(there) != named(here):
        raise CheckpointError(
            f"{path} was written with {named(there)[0]} and cannot be resumed with {named(here)[0]}: set "
            f"{named(there)[1]}."
        )
    then = recorded(record["recipe"], keeper.recipe)
    for key, (before, now) in sorted(differences(then, decisive(keeper.recipe)).items()):
        raise CheckpointError(
            f"{path} was written with {key} = {before!r} in its recipe, which now says {now!r}. Go on with the "
            "recipe of the run folder, or start a run of another name."
        )
    for name in sorted(here["parameters"].keys() | there["parameters"].keys()):
        if here["parameters"].get(name) != there["parameters"].get(name):
            raise CheckpointError(
                f"{path} is of another model: its parameter {name} has shape {there['parameters'].get(name)}, this "
                f"model's {here['parameters'].get(name)}. Go on with the recipe that it was made with."
            )


def newest_verified(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """(folder, manifest) of the newest checkpoint that verifies; None where none was ever published.

    Damaged ones are reported and set aside. Raises CheckpointError where there are checkpoints and all are damaged.
    """
    damaged = []
    for path in Checkpoints(folder).saved():
        try:
            manifest = verify(path)
        except CheckpointError as error:
            print(f"warning: {error} It is passed over.", flush=True)
            damaged.append((path, error))
            continue
        for bad, _ in damaged:
            set_aside(bad)
        return path, manifest
    if damaged:
        listed = " ".join(str(error) for _, error in damaged)
        raise CheckpointError(
            f"No checkpoint in {folder} can be used. {listed} Put a good copy back, or remove {folder} to start afresh."
        )
    if (folder / LATEST).exists() or any(folder.glob("damaged-*")):
        raise gone(folder)
    return None


def gone(folder: Path) -> CheckpointError:
    """What is said where there were checkpoints: never a silent start from scratch."""
    return CheckpointError(
        f"{folder} has had checkpoints, and all are gone. Put one back, or remove {folder.parent} to start afresh."
    )


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint so that it is not tried again; the one set aside before is removed."""
    for old in path.parent.glob("damaged-*"):
        discard(old)
    path.rename(path.with_name(f"damaged-{path.name}"))
