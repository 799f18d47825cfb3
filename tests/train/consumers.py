"""Ranks that train the toy on real shards and note every clip they consume; in a module that a rank can import."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from toy import Toy, teach

from gamut.data.ahead import Ahead
from gamut.data.loader import Loader
from gamut.errors import GamutError, ShardError
from gamut.plan import Catalogue, Clips
from gamut.recipe import schema
from gamut.recipe.cli import require_sets
from gamut.recipe.policy import training_policy
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.shards.add import add
from gamut.shards.joined import open_sets
from gamut.train.growth import Growth
from gamut.train.objective import Moment
from gamut.train.world import World


def make_shards(folder: Path, clips: int = 40) -> Path:
    """A shard set of short noises, 7 clips a shard, in folder/set."""
    rng = np.random.default_rng(0)
    for number in range(clips):
        path = folder / "source" / ("bell", "dog")[number % 2] / f"{number:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = int(rng.integers(200, 12_000))
        soundfile.write(path, rng.normal(scale=0.1, size=samples), 16_000, subtype="PCM_16")
    line = ["convert", "folder", str(folder / "source"), str(folder / "set"), "--clips-per-shard", "7"]
    assert shards([*line, "--workers", "1"]) == 0
    return folder / "set"


def flip_audio(index: Index, row: int) -> None:
    """One bit of a clip's audio, in its tar."""
    with open(index.shard_path(int(index.shard[row])), "r+b") as file:
        at = int(index.offset[row]) + int(index.size[row]) // 2
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


class Noting(Toy):
    """The toy, which writes the clips of a step down once it was applied: {"step", "epoch", "clips": [[id, draw]]}."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._clips: dict[int, list] = defaultdict(list)

    def prepare(self, batch, at: Moment):
        ids = batch.clip_id.numpy().view(np.uint64).tolist()
        self._clips[at.step] += [[batch.epoch, clip, draw] for clip, draw in zip(ids, batch.draw.tolist(), strict=True)]
        return super().prepare(batch, at)

    def after_step(self, at: Moment) -> dict[str, float]:
        values = super().after_step(at)
        os.write(self._log, json.dumps({"step": at.step, "clips": self._clips.pop(at.step)}).encode() + b"\n")
        return values


def consume(
    world: World,
    folder: Path,
    shards: Path,
    recipe: schema.Recipe,
    attempt: int,
    die: tuple[int, int, str] | None = None,
    stop_after: int | None = None,
    began: str = "",
    more: Mapping[int, Path] | None = None,
    served: str = "",
) -> dict | str:
    """Train on real shards; what `teach` answers, or what a GamutError said.

    `die` (step, rank, how): that rank then kills itself in the step's preparation (`prepare`) or after its update
    (`applied`), or kills one of its loader workers (`worker`). began: the generation of the shards to begin with; more:
    step -> a set that is added to the shards when it was taken, unless it is in them by then; served: the URL at which
    the shards are read.
    """
    multiprocessing.current_process()._config["daemon"] = False  # so that a rank may have loader workers here too
    log = folder / "consumed"
    log.mkdir(parents=True, exist_ok=True)
    objective = Noting(log / f"{attempt:03d}-{world.rank}.jsonl")
    if die is not None and die[1] == world.rank:
        _arm(objective, die[0], die[2])
    if more and world.first:
        _add(objective, shards, more)
    recipe = replace(recipe, data=served or str(shards))
    index = open_sets(require_sets(recipe), recipe.remote, began=began)
    lead = world.local_rank == 0
    try:
        with contextlib.ExitStack() as held:

            def plan(index: Index, clips: Clips | Catalogue) -> Ahead:
                policy = training_policy(recipe)
                return held.enter_context(Ahead(folder / "plan", clips, recipe.seed, policy, recipe.epochs, lead))

            growth = Growth(recipe, world, folder, Index.table, plan)
            how = {"index": index, "plans": plan(index, index.table()), "make_loader": Loader, "growth": growth}
            return teach(world, folder, recipe, objective, stop_after=stop_after, **how)
    except GamutError as error:
        return str(error)


def _add(objective: Noting, shards: Path, more: Mapping[int, Path]) -> None:
    after = objective.after_step

    def grow(at: Moment) -> dict[str, float]:
        if at.step in more:
            with contextlib.suppress(ShardError):  # it was added by an attempt before this
                add(shards, [more[at.step]])
        return after(at)

    objective.after_step = grow


def _arm(objective: Noting, step: int, how: str) -> None:
    def strike(now: int) -> None:
        if now != step:
            return
        if how == "worker":
            workers = [child for child in multiprocessing.active_children() if child.name.startswith("ForkProcess")]
            os.kill(workers[0].pid, signal.SIGKILL)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "applied":
        after = objective.after_step
        objective.after_step = lambda at: (after(at), strike(at.step))[0]
    else:
        objective.before_step = strike


def consumed(folder: Path) -> dict[int, list[tuple[int, int, int]]]:
    """step -> the (epoch, clip id, draw) of all ranks, sorted, of the last attempt that took the step."""
    steps: dict[int, dict[int, list]] = defaultdict(lambda: defaultdict(list))
    for file in sorted((folder / "consumed").iterdir()):
        attempt = int(file.name.split("-")[0])
        for line in file.read_text().splitlines():
            note = json.loads(line)
            steps[note["step"]][attempt] += [tuple(clip) for clip in note["clips"]]
    return {step: sorted(attempts[max(attempts)]) for step, attempts in sorted(steps.items())}
