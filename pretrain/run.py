"""ASiT pretraining.

Examples:
    python pretrain/run.py asit_tiny data=shards/esc10
    deepspeed --num_gpus 2 pretrain/run.py asit_tiny data=shards/esc10 run.name=first_try
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from gamut.audio.logmel import unpatch
from gamut.data.assemble import assemble
from gamut.errors import command
from gamut.plan import Clips, plan_evaluation
from gamut.recipe import cli, schema
from gamut.recipe.policy import evaluation_policy
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.track import figures
from gamut.train import world as ranks
from gamut.train.loop import train
from gamut.train.objective import Moment
from gamut.train.preview import preview
from gamut.train.session import EXIT_PREEMPTED, Session, select, session, short_clips_warning, statistics


@command
def main(argv: list[str] | None = None) -> int:
    """Train the recipe that the command line names. 0: finished; 75: preempted and saved, to be started again."""
    typed = cli.parse("pretrain", sys.argv[1:] if argv is None else argv)
    recipe = typed.recipe
    index = open_sets(cli.require_sets(recipe), recipe.remote)
    clips = select(index, recipe.subset, recipe.plan.weights)
    if typed.dry_run:
        size, nodes = ranks.declared()
        preview(recipe, clips, size, index=index, nodes=nodes)
        return 0
    mean, std = statistics(recipe, index)
    world = ranks.start(recipe.run)
    if world.first and (warning := short_clips_warning(recipe, clips)):
        print(f"warning: {warning}", flush=True)

    from pretrain.asit import Asit  # after the ranks have started: what it imports reads the environment

    objective = Asit(recipe, mean, std, world.device)
    if recipe.init:
        loaded = objective.start_from(recipe.init)
        if world.first:
            print(loaded, flush=True)
    with session(recipe, world, index, clips) as run:
        draw = Pictures(objective, recipe, index, clips, run) if world.first and objective.rebuilds else None

        def at_epoch_end(epoch: int, at: Moment) -> dict[str, float]:
            if draw is not None:
                draw(epoch, at)
            return {}

        result = train(
            objective=objective,
            recipe=recipe,
            world=world,
            index=index,
            plans=run.plans,
            folder=run.folder,
            tracker=run.tracker,
            progress=run.progress,
            at_epoch_end=at_epoch_end,
            preemption=run.preemption,
        )
        run.tracker.close(result.status)
    if world.first:
        print(f"{result.status}: {run.folder}, checkpoint {result.checkpoint}", flush=True)
    ranks.stop()
    return EXIT_PREEMPTED if result.status == "preempted" else 0


class Pictures:
    """Spectrogram, mask and reconstruction of a few fixed clips, every so many epochs and at the end."""

    def __init__(self, objective, recipe: schema.Recipe, index: Index, clips: Clips, run: Session) -> None:
        self.objective = objective
        self.recipe = recipe
        self.index = index
        self.run = run
        some = clips.select(np.array([0, len(clips.row) // 2]))
        self.epoch = plan_evaluation(some, evaluation_policy(recipe))
        self.every = recipe.track.picture_epochs

    def __call__(self, epoch: int, at: Moment) -> None:
        last = epoch + 1 == self.recipe.epochs
        if self.every <= 0 or not (last or (epoch + 1) % max(1, round(self.every)) == 0):
            return
        batch = assemble(self.index, self.epoch, list(range(self.epoch.steps * self.epoch.packs)))
        clean, hidden, rebuilt = self.objective.rebuild(batch, at)
        mels = [unpatch(part.float()).cpu().numpy() for part in (clean, hidden, rebuilt)]
        start = 0
        for clip, frames in enumerate(batch.sizes):
            span = slice(start, start + frames)
            start += frames
            key = self.index.key(int(batch.row[clip]))
            seconds = float(batch.shift[clip]) / 16_000
            title = f"{key}, student after epoch {epoch + 1}"
            figure = figures.reconstruction(mels[0][span], mels[1][span] > 0, mels[2][span], title, seconds)
            self.run.tracker.figure(f"reconstruction-{clip}", figure, at.step)


if __name__ == "__main__":
    sys.exit(main())
