"""Pretraining: ASiT, or the objective that the recipe names.

Examples:
    python pretrain/run.py asit_tiny data=shards/esc10
    deepspeed --num_gpus 2 pretrain/run.py asit_tiny data=shards/esc10 run.name=first_try
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.commands import command
from gamut.recipe import cli


@command
def main(argv: list[str] | None = None) -> int:
    """Train the recipe that the command line names. 0: finished; 75: preempted and saved, to be started again."""
    typed = cli.parse("pretrain", sys.argv[1:] if argv is None else argv)

    from gamut.numbers import EXIT_PREEMPTED  # here: --help need not wait for torch
    from gamut.probe.features import Encoder, FrontEnd
    from gamut.probe.labelled import labelled
    from gamut.probe.watch import Watch
    from gamut.shards.joined import open_sets
    from gamut.shards.select import select
    from gamut.train import world as ranks
    from gamut.train.loop import train
    from gamut.train.objective import Moment, pretraining
    from gamut.train.preview import preview, short_clips_warning
    from gamut.train.session import begins, open_session

    recipe = typed.recipe
    index = open_sets(cli.require_sets(recipe), recipe.remote)
    clips = select(index, recipe.subset, recipe.plan.weights)
    probed, reason = labelled(recipe, index) if recipe.probe.every_epochs > 0 else (None, "")
    if typed.dry_run:
        size, nodes = ranks.declared()
        preview(recipe, clips, size, index=index, nodes=nodes)
        print(f"probe: {probed or reason or 'none'}", flush=True)
        return 0
    mean, std = index.normalisation(recipe.front)
    world = ranks.start(recipe.run)
    if world.first and (warning := short_clips_warning(recipe.views, clips)):
        print(f"warning: {warning}", flush=True)
    if world.first and (probed or reason):
        print(f"probe: {probed}" if probed else f"no probe: {reason}", flush=True)

    from pretrain.pictures import Pictures  # after the ranks have started: what it imports reads the environment

    objective = pretraining(recipe, mean, std, world.device)
    as_begun = begins(recipe, world) or not recipe.init  # else the weights come from a checkpoint, later
    if recipe.init and as_begun:
        loaded = objective.start_from(recipe.init)
        if world.first:
            print(loaded, flush=True)
    front = FrontEnd(mean, std, recipe.front.mode)
    encode = Encoder(objective.backbone, front, recipe.precision, world.device, recipe.probe.rows)
    with (
        open_session(recipe, world, index, clips) as run,
        Watch(recipe, probed, encode, world, run.folder, run.tracker) as watch,
    ):
        draw = Pictures(objective, encode, recipe, index, clips, run.tracker)

        def at_epoch_end(epoch: int, at: Moment) -> dict[str, float]:
            draw(epoch, at)
            return watch.after_epoch(epoch, at)

        watch.before(as_begun)
        result = train(objective, run, at_epoch_end)
        if result.status == "finished":
            watch.finish()
        run.tracker.close(result.status)
    if world.first:
        print(f"{result.status}: {run.folder}, checkpoint {result.checkpoint}", flush=True)
    ranks.stop()
    return EXIT_PREEMPTED if result.status == "preempted" else 0


if __name__ == "__main__":
    sys.exit(main())
