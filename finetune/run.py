"""Fine-tuning and scoring, a round for every set of test folds and every seed.

Examples:
    python finetune/run.py esc50 init=runs/asit_b data=shards/esc50
    deepspeed --num_gpus 2 finetune/run.py esc10 init=runs/asit_tiny data=shards/esc10 folds.test=[[5]]
    deepspeed finetune/run.py whisper_at_tltr512 features=features/whisper_large data=shards/audioset
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.commands import command
from gamut.errors import GamutError, RunError
from gamut.recipe import cli, schema

if TYPE_CHECKING:
    from finetune.rounds import Round
    from finetune.start import Start
    from gamut.features import FeatureCache
    from gamut.shards import Index
    from gamut.train.world import World


@command
def main(argv: list[str] | None = None) -> int:
    """Run the rounds of the recipe that the command line names. 0: all done; 75: preempted, to be started again."""
    typed = cli.parse("finetune", sys.argv[1:] if argv is None else argv)

    from finetune.heads import open_features  # here: --help need not wait for torch
    from finetune.rounds import rounds
    from finetune.start import require_start, start_of
    from gamut.numbers import EXIT_PREEMPTED
    from gamut.shards.joined import open_sets
    from gamut.shards.select import select
    from gamut.track.run import RunFolder
    from gamut.train import world as ranks
    from gamut.train.preview import preview

    recipe = typed.recipe
    index = open_sets(cli.require_sets(recipe), recipe.remote)
    todo = rounds(recipe, index)
    cache = open_features(recipe, index)
    if typed.dry_run:
        first = todo[0].recipe(recipe)
        size, nodes = ranks.declared()
        clips = select(index, recipe.subset | {recipe.folds.column: list(todo[0].train)}, recipe.plan.weights)
        preview(first, clips, size, index=index, nodes=nodes)
        return 0
    mean, std = (0.0, 1.0) if cache is not None or recipe.encoder else index.normalisation(recipe.front)
    world = ranks.start(recipe.run)
    if world.first:
        origin = f"the weights of {recipe.init}" if recipe.init else "scratch"
        print(f"{len(todo)} rounds from {origin}, {len(index.labels)} classes", flush=True)
    start = world.broadcast(start_of(recipe) if world.first else {})  # of all rounds, though a pretraining may go on
    results: list[dict] = []
    for each in todo:
        require_start(results, start, recipe.init, RunFolder.place(recipe))  # of a round that went on just now
        result = run_round(each, each.recipe(recipe), index, cache, mean, std, start, world)
        if result is None:
            ranks.stop()
            return EXIT_PREEMPTED
        results.append(result)
    if world.first:
        from finetune.scoring import summarise

        summarise(RunFolder.place(recipe), index, results)
    ranks.stop()
    return 0


def run_round(
    each: Round,
    recipe: schema.Recipe,
    index: Index,
    cache: FeatureCache | None,
    mean: float,
    std: float,
    start: Start,
    world: World,
) -> dict | None:
    """Train and score one round; None if it was preempted. A round that has its result is not run again, and is refused
    where that is of another recipe or shard set, or of other weights of `init`.

    cache: the features to train a head on; mean and std: of the log-mel, where there is none; start: what `init` means.
    """
    from finetune.heads import TagFeatures, encoder_of, loader_of, require_features
    from finetune.rounds import require_labels
    from finetune.start import Leakage, keep_start, kept_start, leakage_of
    from gamut.shards.select import for_scoring, select
    from gamut.track.run import RESULT, START, RunFolder
    from gamut.train.loop import train
    from gamut.train.session import begins, open_session

    folder = RunFolder.place(recipe)
    if world.broadcast((folder / RESULT).exists()):
        return _finished(folder, recipe, index, start, world)

    from finetune.evaluation import metric_of
    from finetune.objective import Classify  # after the ranks have started: these imports read the environment
    from finetune.scoring import Scoring

    classes = len(index.labels)
    objective: Classify
    if recipe.encoder:
        from finetune.end_to_end import EndToEnd

        objective = EndToEnd(recipe, classes, list(index.labels), recipe.seed, world.device)
    elif cache is None:
        objective = Classify(recipe, classes, mean, std, recipe.seed, world.device, index.labels)
    else:
        shape, encoder = (cache.info.layers, cache.info.steps, cache.info.dim), encoder_of(cache)
        encoder |= {"labels": list(index.labels)}
        objective = TagFeatures(recipe, classes, shape, encoder, recipe.seed, world.device)
    fresh = begins(recipe, world)
    if recipe.init and fresh:
        loaded = objective.start_from(start.get("path", recipe.init))
        if world.first:
            print(loaded, flush=True)
    column = recipe.folds.column
    clips = select(index, recipe.subset | {column: list(each.train)}, recipe.plan.weights)
    scored = for_scoring(recipe.subset)
    test = select(index, scored | {column: list(each.test)})
    validation = select(index, scored | {column: list(each.validation)}) if each.validation else None
    for some, folds in ((clips, each.train), (test, each.test), (validation, each.validation)):
        require_features(cache, index, some, scored=some is not clips)
        if metric_of(recipe.finetune).one_label:
            require_labels(index, some, folds)
    with open_session(recipe, world, index, clips) as run:
        if world.first and (fresh or not (folder / START).exists()):
            keep_start(folder, start if fresh else {}, leakage_of(recipe.init, index, test))
        began, leakage = kept_start(folder) if world.first else ({}, Leakage())
        if leakage.clips:
            print(f"{recipe.run.name}: {leakage.told(len(test), column, each.train)}", flush=True)
        scoring = Scoring(objective, recipe, each, index, test, validation, run, world, loader_of(cache))
        result = train(objective, run, scoring, loader_of(cache))
        if result.status == "preempted":
            run.tracker.close(result.status)
            return None
        return world.broadcast(scoring.finish(result.state.step, leakage.clips, began) if world.first else None)


def _finished(folder: Path, recipe: schema.Recipe, index: Index, start: Start, world: World) -> dict:
    """The result that a round has. Raises RunError where it was trained by another recipe, on another shard set or from
    other weights; one of an earlier version does not name its set and its weights, and is taken."""
    from finetune.start import require_start
    from gamut.track.run import RESULT, RunFolder

    found: dict = {}
    problem: Exception | None = None
    if world.first:
        try:
            RunFolder.keep_recipe(folder, recipe)
            found = json.loads((folder / RESULT).read_text())
            if found.get("index", index.fingerprint) != index.fingerprint:
                raise RunError(
                    f"The round at {folder} was trained on the shard set {found['index']}, and {index.folder} is "
                    f"{index.fingerprint}. Give the new run a name of its own with run.name=..., or remove the folder."
                )
            require_start([found], start, recipe.init, folder.parent)
        except (GamutError, OSError, ValueError) as error:
            problem = error if isinstance(error, GamutError) else RunError(f"{folder / RESULT} is damaged: {error}.")
    world.agree(problem, "take the round's result")
    return world.broadcast(found)


if __name__ == "__main__":
    sys.exit(main())
