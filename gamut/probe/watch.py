"""Probes of a pretraining that goes on: vectors at an epoch's end, scores in the background."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gamut.data.share import Share
from gamut.files import write_text
from gamut.preemption import Preempted
from gamut.probe.background import Background, Tracker, place
from gamut.probe.features import PACKS, Encoder, extract, kinds, whole_clips
from gamut.probe.fit import leave, share_of
from gamut.probe.labelled import PROBED, Labelled, read_probed
from gamut.recipe.schema import Recipe
from gamut.track.checkpoints import step_of
from gamut.track.metrics import History
from gamut.track.run import RunFolder
from gamut.train.objective import Moment
from gamut.train.schedule import is_due
from gamut.train.world import World
from gamut.watchdog import WATCHDOG

PATIENCE = 1800.0  # seconds that the end of a run waits for the scores of its last probe


class Watch:
    """k-NN, linear probe and embedding of a labelled set, every so many epochs. A context: all ranks enter it.

    What training waits for is the forward over the labelled clips, shared out over the ranks: `probe/seconds`. Each
    rank leaves its vectors in the run folder; the scores are the business of a process beside the first rank. Nothing
    is drawn from a generator, no tensor of the training is written to: a run has the same bits with and without.

    A probe that fails on any rank is counted and said, and the training goes on. One that is under way when the process
    is told to end is left (Preempted), and taken up again by the next attempt. `labelled` None: does nothing.
    """

    def __init__(
        self, recipe: Recipe, labelled: Labelled | None, encode: Encoder, world: World, run: Path, tracker: Tracker
    ) -> None:
        self.recipe = recipe
        self.labelled = labelled if recipe.probe.every_epochs > 0 else None
        self.encode = encode
        self.world = world
        self.run_folder = run
        self.background = Background(run, tracker) if world.first and self.labelled is not None else None
        packs = max(PACKS, world.size)
        self.plan = None if self.labelled is None else whole_clips(self.labelled.clips, recipe, packs)

    def __enter__(self) -> Watch:
        if self.background is not None:
            if self._changed():
                shutil.rmtree(place(self.run_folder, 0), ignore_errors=True)
            there = RunFolder(self.run_folder).checkpoints.saved()
            self.background.take_over(step_of(there[0]) if there else -1)
            self.background.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.background is not None:
            self.background.close()

    def before(self, as_begun: bool = True) -> None:
        """Probe the network as it is before training, and the log-mel: a curve's reference lines, once a run, and again
        where the section `probe` asks for other clips or vectors than the attempts before.

        Called before a checkpoint is loaded, so an attempt that goes on can make up for one that was killed here.
        as_begun: whether the network is as the run began with it; not so where `init` was not loaded again, which
        leaves the lines as they are.
        """
        if self.labelled is None:
            return
        due = False
        if self.background is not None:
            known = History.read(RunFolder(self.run_folder).metrics).points
            due = self._changed() or ("probe/knn/logmel" not in known and not place(self.run_folder, 0).exists())
            before = read_probed(self.run_folder)
            if before and before["digest"] != self._asked()["digest"]:
                print(
                    "warning: the probes are of other clips, classes or neighbours than in the attempts before: the "
                    "scores from here on do not compare with those of the epochs before in the curves.",
                    flush=True,
                )
        if self.world.broadcast(due and as_begun):
            self._probe(0, "before training", scores=True, picture=True, with_logmel=True)

    def _asked(self) -> dict[str, Any]:
        """What the reference lines are of."""
        assert self.labelled is not None
        return {"digest": self.labelled.digest(self.recipe.probe), "kinds": kinds(self.recipe)}

    def _changed(self) -> bool:
        """Whether the reference lines that the run has are not of what is asked for, or are not said to be."""
        return read_probed(self.run_folder) != self._asked()

    def after_epoch(self, epoch: int, at: Moment) -> dict[str, float]:
        """Probe if one is due after this epoch (counted from 0). Returns the seconds that it took."""
        if self.labelled is None:
            return {}
        recipe = self.recipe
        scores = is_due(epoch + 1, recipe.epochs, recipe.probe.every_epochs)
        picture = is_due(epoch + 1, recipe.epochs, recipe.track.picture_epochs)
        if not scores and not picture:
            return {}
        since = time.perf_counter()
        self._probe(at.step, f"after epoch {epoch + 1}", scores, picture)
        return {"probe/seconds": time.perf_counter() - since}

    def finish(self) -> None:
        """The run is done: wait for the last scores, and say them."""
        if self.background is not None:
            with WATCHDOG.resting():
                self.background.drain(PATIENCE)
            if said := _last(History.read(RunFolder(self.run_folder).metrics)):
                print(said, flush=True)

    def _probe(self, step: int, when: str, scores: bool, picture: bool, with_logmel: bool = False) -> None:
        assert self.labelled is not None
        assert self.plan is not None
        world, clips, folder = self.world, self.labelled, place(self.run_folder, step)
        share = Share()
        try:
            share = extract(
                self.encode,
                clips.index,
                self.plan,
                rank=world.rank,
                world=world.size,
                workers=self.recipe.loader.workers,
                per_forward=self.recipe.loader.per_forward,
                with_logmel=with_logmel,
            )
            if not (share.problem or share.left):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                np.savez(share_of(folder, world.rank), **share.arrays())  # type: ignore[arg-type]
        except Exception as error:  # whatever it is: a probe is no reason to stop a training
            share.problem = f"{type(error).__name__}: {error}"
        parts = world.gather((share.problem, [hole.key for hole in share.holes], share.left))
        if any(left for *_, left in parts):
            shutil.rmtree(folder, ignore_errors=True)
            raise Preempted
        if self.background is None:
            return
        holes = sorted(key for _, keys, _ in parts for key in keys)
        problem = next((f"rank {rank}: {said}" for rank, (said, *_) in enumerate(parts) if said), "")
        try:
            if holes:
                print(f"warning: {len(holes)} clips of the probe cannot be read: {', '.join(holes[:5])}.", flush=True)
            if not problem:
                title = f"{self.recipe.run.name} {when}: {clips.index.name}" if picture else ""
                request = {"ranks": world.size, "neighbours": self.recipe.probe.neighbours, "scores": scores}
                leave(folder, clips.clips.row, clips.target, clips.fold, clips.labels, title=title, **request)
                if with_logmel:
                    write_text(self.run_folder / PROBED, json.dumps(self._asked()))
        except OSError as error:
            problem = str(error)
        if problem:
            self.background.fail(step, problem)
        else:
            self.background.add(step)


def _last(history: History) -> str:
    """The last scores of the teacher, a share of 1 each, in a line; empty where there are none."""
    told = []
    for how, called in (("knn", "k-NN"), ("linear", "linear")):
        begin = f"probe/{how}/"
        last = {
            name.removeprefix(begin): history.series(name)[1][-1] for name in history.points if name.startswith(begin)
        }
        if last:
            told.append(f"{called} {', '.join(f'{100 * value:.1f} % ({kind})' for kind, value in last.items())}")
    return f"the last probe: {'; '.join(told)}" if told else ""
