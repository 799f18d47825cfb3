"""Checkpoints of a run: written whole, verified before they are read, the newest good one found by itself.

checkpoints/step-00000100/   engine/            the engine's files (optimiser; DeepSpeed's weights as trained)
                             model.safetensors  the model's weights in fp32, to start other runs from
                             objective.safetensors, state.json, rank-00000.safetensors ...
                             manifest.json      sha256 and size of every file, written last
checkpoints/latest           the name of the newest, for people and scripts; resuming goes by the manifests
checkpoints/kept.json        those that are never removed (checkpoint.keep_every)
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensor_bytes

from gamut import files
from gamut.errors import CheckpointError
from gamut.models.find import MODEL, OBJECTIVE, described
from gamut.models.weights import plain
from gamut.recipe import schema
from gamut.recipe.resolved import decisive
from gamut.track.checkpoints import (
    LATEST,
    MANIFEST,
    SAVING,
    STATE,
    Checkpoints,
    discard,
    remove_leftovers,
    step_of,
)
from gamut.train.copies import Copies, copies_of
from gamut.train.engine import Engine
from gamut.train.objective import Objective
from gamut.train.state import State, machine
from gamut.train.storage import FOLDER, REMEDY, Writer, explain
from gamut.train.world import World
from gamut.watchdog import WATCHDOG

VERSION = 1
PATIENCE = 1.0  # seconds that one waits for another's writing without a word


class _Saving:
    """A checkpoint that is being written: by every rank its part, then published by rank 0."""

    def __init__(self, final: Path, step: int, writer: Writer) -> None:
        self.final = final
        self.step = step
        self.writer = writer
        self.seen = 0  # of what the writer has moved, by who waits for it
        self.publishing = False
        self.problem: Exception | None = None

    def begin(self, action: Callable[[], Exception | None]) -> None:
        """Do the next stage in a thread; `action` gives what went wrong."""

        def run() -> None:
            try:
                self.problem = action()
            except Exception as error:  # raised by `go_on`, in the thread that trains
                self.problem = error

        self.thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self.thread.start()


class Keeper:
    """Saves one run's checkpoints; `gamut.train.restore.resume` reads them.

    Every method but `due`, `busy` and `leave` is called by all ranks together.
    """

    def __init__(
        self,
        folder: Path,
        recipe: schema.Recipe,
        world: World,
        fingerprint: dict[str, str],
        engine: Engine,
        objective: Objective,
        told: Callable[[int, str, str], object] = lambda step, path, sha256: None,
    ) -> None:
        """told: called when a checkpoint is published, with its step, path and the hash of its manifest (on rank 0)."""
        self.folder = folder
        self.recipe = recipe
        self.world = world
        self.fingerprint = fingerprint
        self.go_on_with: Callable[[str], object] = lambda generation: None  # of the shard set, before it is compared
        self.engine = engine
        self.objective = objective
        self.newest: Path | None = None
        self.sha256 = ""  # of the newest one's manifest, which has the hashes of the rest; known to rank 0
        self.told = told
        place = copies_of(recipe)
        self.copies = None
        if place is not None and world.first:
            self.copies = Copies(self.checkpoints, place, recipe.checkpoint.keep)
        self._saving: _Saving | None = None
        self._saved_at = time.monotonic()

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder)

    def due(self, by_epochs: bool, to_be_saved: bool = False) -> bool:
        """Whether a checkpoint is due, by the clock or `by_epochs`. Only rank 0's clock may decide.

        to_be_saved: there will be one before the step that this is asked for.
        """
        how = self.recipe.checkpoint
        minutes = 0.0 if to_be_saved else (time.monotonic() - self._saved_at) / 60.0
        return minutes >= how.least_minutes and (by_epochs or minutes > how.every_minutes)

    @property
    def busy(self) -> bool:
        """Whether this rank is writing. The others need not know at the same time."""
        return self._saving is not None and self._saving.thread.is_alive()

    def save(self, state: State, keep: bool = False) -> None:
        """Copy `state` and all that belongs to it off the device; a thread writes it while the training goes on, as
        far as the next `go_on`. One of the same step that is there already stays; one that is still being written is
        waited for.

        keep: it is never removed; `state` then stands at the beginning of an epoch.

        Raises CheckpointError on every rank where any could not write, naming it, the path and the bytes, and so do
        `go_on` and `finish`; the checkpoints before it are untouched, and nothing names the unfinished one.
        """
        if self._saving is not None and self.busy and self.world.first:
            print(f"step {state.step}: a checkpoint waits for {self._saving.final.name} to be written", flush=True)
        self.finish()
        final = self.checkpoints.place(state.step)
        problem: Exception | None = None
        if keep:
            if self.world.first:
                problem = self._attempt(lambda: self.checkpoints.keep(final.name, state.epoch))
            self.world.agree(problem, "note a checkpoint to keep")
        if self.newest == final:
            self.told(state.step, str(final), self.sha256)
            return
        temporary = self.folder / f"{SAVING}{final.name}"
        if self.world.first:
            problem = self._attempt(lambda: self._clean_start(temporary))
        self.world.agree(problem, "start a checkpoint")

        WATCHDOG.beat(f"copying {final.name}")
        writer = Writer(temporary)
        self.engine.save(writer)
        self._take_own(writer, state)
        size = sum(self.world.gather(writer.size))
        self.world.agree(self._room(final, size) if self.world.first else None, "find room for a checkpoint")
        self._saving = _Saving(final, state.step, writer)
        self._saving.begin(lambda: self._attempt(writer.write))
        self._saved_at = time.monotonic()

    def go_on(self) -> None:
        """Bring the checkpoint that is being written a stage further. Every rank calls it, when none is `busy`; one
        that is makes the others wait.

        When all have written their parts, rank 0 publishes them, in a thread again.
        """
        saving = self._saving
        if saving is None:
            return
        saving.thread.join()
        writer = saving.writer
        problem = saving.problem
        if not saving.publishing:
            self.world.agree(problem, "write its part of a checkpoint")
            saving.publishing = True
            parts = self.world.gather(writer.entries)
            if self.world.first:
                entries = {name: entry for part in parts for name, entry in part.items()}
                publish = partial(self._publish, writer.root, saving.final, entries)
                saving.begin(lambda: self._attempt(publish))
            return
        self.world.agree(problem, "publish a checkpoint")
        self._saving = None
        self.newest = saving.final
        self.told(saving.step, str(saving.final), self.sha256)
        if self.copies is not None:
            self.copies.begin(saving.final)

    def finish(self) -> None:
        """Wait until nothing is being written. Called by all ranks together."""
        while self._saving is not None:
            WATCHDOG.beat(f"waiting for {self._saving.final.name} to be written")
            while any(self.world.gather(self._writing(self._saving))):
                pass
            self.go_on()

    def leave(self) -> None:
        """Wait for this rank's own thread alone, whatever the others do: nobody writes once the run is left."""
        while self._saving is not None and self._writing(self._saving):
            pass

    def _writing(self, saving: _Saving) -> bool:
        """Whether this rank is still writing after a moment of waiting for it."""
        saving.thread.join(PATIENCE)
        if saving.writer.moved > saving.seen or not self.busy:
            saving.seen = saving.writer.moved
            WATCHDOG.beat()
        return self.busy

    def _attempt(self, action: Callable[[], object]) -> Exception | None:
        try:
            action()
        except OSError as error:
            return CheckpointError(explain(error, self.folder))
        except CheckpointError as error:
            return error
        return None

    def _clean_start(self, temporary: Path) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        temporary.mkdir(mode=0o700)

    def _room(self, final: Path, size: int) -> CheckpointError | None:
        """What is to be said where the disk has no room for so many bytes; not a byte is written then."""
        left = shutil.disk_usage(self.folder).free
        if left >= size:
            return None
        return CheckpointError(
            f"A checkpoint takes {size:,} bytes, and the file system of {self.folder} has {left:,} bytes free: "
            f"{final.name} is not begun. The run keeps {self.recipe.checkpoint.keep} of them (checkpoint.keep), and "
            f"needs room for one more while it saves. {REMEDY}"
        )

    def _take_own(self, writer: Writer, state: State) -> None:
        world = self.world
        weights = self.engine.weights(wanted=world.first)
        randomness = {"cpu": torch.get_rng_state()}
        if world.device.type == "cuda":
            randomness["cuda"] = torch.cuda.get_rng_state(world.device)
        writer.bytes(f"rank-{world.rank:05d}.safetensors", tensor_bytes(randomness))
        extra = plain(self.objective.extra_state())  # by all ranks: a teacher may have to be put together
        if not world.first:
            return
        about = {"model": asdict(self.recipe.model)} | self.objective.described()
        writer.tensors(MODEL, plain(weights), described(about))
        writer.bytes(OBJECTIVE, tensor_bytes(extra, described(about)))
        record = {
            "version": VERSION,
            "state": state.as_dict(),
            "plan": self.fingerprint,
            "weights": about,
            "recipe": decisive(self.recipe),
            "engine": self.engine.signature(),
            "machine": machine(world.threads, world.device) | {"compiled": self.objective.compiled()},
        }
        writer.bytes(STATE, json.dumps(record, indent=1, sort_keys=True).encode())

    def _publish(self, temporary: Path, final: Path, entries: dict[str, Any]) -> None:
        """Manifest, folder, `latest`: in this order, each durable before the next."""
        files.sync(temporary / FOLDER)
        manifest = files.write_json(temporary / MANIFEST, {"version": VERSION, "files": entries})
        self.sha256 = manifest["sha256"]
        files.rename_folder(temporary, final)
        self._name_latest(final)
        kept = self.checkpoints.noted()
        for old in self.checkpoints.saved()[self.recipe.checkpoint.keep :]:
            if old.name not in kept:
                discard(old)

    def back(self, step: int) -> int:
        """Go back behind a step: remove the checkpoints after it, but for the oldest. Steps of the newest that is left.

        For rank 0 alone. Raises OSError as the system does.
        """
        there = self.checkpoints.saved()
        newer = [path for path in there if step_of(path) > step]
        left = [path for path in there if path not in newer] or newer[-1:]
        if left:
            self._name_latest(left[0])
        for path in newer:
            if path != left[0]:
                discard(path)
        self.newest = left[0] if left else None
        if self.copies is not None:
            self.copies.forget(step_of(left[0]) if left else 0)
        return step_of(left[0]) if left else 0

    def oldest(self) -> int:
        """What step the oldest checkpoint is of; 0 where there is none."""
        there = self.checkpoints.saved()
        return step_of(there[-1]) if there else 0

    def _name_latest(self, path: Path) -> None:
        files.write_text(self.folder / LATEST, f"{path.name}\n")
