"""A fine-tuning as a whole: round after round, each trained, scored and kept, and the scores of all."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from finetune.end_to_end import EndToEnd
from finetune.evaluation import metric_of
from finetune.events import Events
from finetune.heads import TagFeatures, encoder_of, loader_of, open_features, require_features
from finetune.objective import Classify
from finetune.rounds import Round, require_labels, rounds
from finetune.scoring import Scoring, summarise
from finetune.start import Leakage, Start, keep_start, kept_start, leakage_of, require_start, start_of
from gamut.errors import GamutError, RunError
from gamut.estimate.packs import forward_of
from gamut.evaluate.events import require_scorer
from gamut.plan import Clips
from gamut.preemption import PREEMPTION
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.select import for_scoring, select
from gamut.track.run import RESULT, START, RunFolder
from gamut.train.main import Work
from gamut.train.session import Forward, begin, open_session
from gamut.train.world import World


class Finetune(Work):
    """A round for every set of test folds and every seed; on features, where the recipe names a cache of them."""

    def __init__(self, recipe: Recipe, index: Index) -> None:
        super().__init__(recipe, index)
        if recipe.model.pooling == "frames":
            require_scorer()  # now, and not after hours of training
        self.rounds = rounds(recipe, index)
        self.cache = open_features(recipe, index)
        self._forward: Forward | None = None

    def first(self) -> tuple[Recipe, Clips, str]:
        return self.rounds[0].recipe(self.recipe), self._trained_on(self.rounds[0]), ""

    def normalisation(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.cache is not None or self.recipe.encoder else super().normalisation()

    def forecast(self, recipe: Recipe, ranks: int) -> list[tuple[str, str]]:
        from gamut.estimate.here import rows  # here: only a dry run needs it

        return rows(recipe, ranks)

    def run(self, world: World, mean: float, std: float) -> bool:
        from gamut.report.write import at_end  # here: a dry run need not wait for matplotlib

        recipe, todo = self.recipe, self.rounds
        if world.first:
            origin = f"the weights of {recipe.init}" if recipe.init else "scratch"
            print(
                f"{len(todo)} round{'s' * (len(todo) > 1)} from {origin}, {len(self.index.labels)} classes", flush=True
            )
        start = world.broadcast(start_of(recipe) if world.first else {})  # of all, though a pretraining may go on
        results: list[dict] = []
        for each in todo:
            require_start(results, start, recipe.init, RunFolder.place(recipe))  # of a round that went on just now
            result = self.round(each, start, world, mean, std)
            if result is None:
                return False
            results.append(result)
            if each is not todo[-1] and any(world.gather(PREEMPTION.asked)):
                return False
        if world.first:
            summarise(RunFolder.place(recipe), self.index, results)
            at_end(RunFolder.place(recipe), recipe)
        return True

    def round(self, each: Round, start: Start, world: World, mean: float, std: float) -> dict | None:
        """Train and score one round; None if it was preempted. A round that has its result is not run again, and is
        refused where that is of another recipe or shard set, or of other weights of `init`.

        start: what `init` means; mean and std: of the log-mel, where there is one.
        """
        from gamut.train.loop import train  # here: a dry run need not wait for DeepSpeed

        recipe, index, cache = each.recipe(self.recipe), self.index, self.cache
        folder = RunFolder.place(recipe)
        if world.broadcast((folder / RESULT).exists()):
            return self._finished(folder, recipe, start, world)
        objective = self._objective(recipe, mean, std, world.device)
        fresh = begin(objective, recipe, world, start.get("path", recipe.init))
        column, scored = recipe.folds.column, for_scoring(recipe.subset)
        clips, test = self._trained_on(each), select(index, scored | {column: list(each.test)})
        validation = select(index, scored | {column: list(each.validation)}) if each.validation else None
        for some, folds in ((clips, each.train), (test, each.test), (validation, each.validation)):
            require_features(cache, index, some, scored=some is not clips)
            if metric_of(recipe.finetune).one_label:
                require_labels(index, some, folds)
        with open_session(recipe, world, index, clips, self.forward(recipe, world)) as session:
            if world.first and (fresh or not (folder / START).exists()):
                keep_start(folder, start if fresh else {}, leakage_of(recipe.init, index, test))
            began, leakage = kept_start(folder) if world.first else ({}, Leakage())
            if leakage.clips:
                print(f"{recipe.run.name}: {leakage.told(len(test), column, each.train)}", flush=True)
            loader = loader_of(cache, recipe.head)
            scoring = Scoring(objective, recipe, each, index, test, validation, session, world, loader)
            result = train(objective, session, scoring, loader)
            if result.status == "preempted":
                session.tracker.close(result.status)
                return None
            return world.broadcast(scoring.finish(result.state.step, leakage.clips, began) if world.first else None)

    def forward(self, recipe: Recipe, world: World) -> Forward:
        """Of all rounds what fits in the first that is run: their steps are alike."""
        if self._forward is None:
            self._forward = forward_of(recipe, world)
        return self._forward

    def _trained_on(self, each: Round) -> Clips:
        recipe = self.recipe
        return select(self.index, recipe.subset | {recipe.folds.column: list(each.train)}, recipe.plan.weights)

    def _objective(self, recipe: Recipe, mean: float, std: float, device: torch.device) -> Classify:
        """A network on sound, or a head on an encoder that is trained with it or on its cached features."""
        labels, cache = list(self.index.labels), self.cache
        if recipe.encoder:
            return EndToEnd(recipe, len(labels), labels, recipe.seed, device)
        if cache is None:
            kind = Events if recipe.model.pooling == "frames" else Classify
            return kind(recipe, len(labels), mean, std, recipe.seed, device, labels)
        shape = (cache.info.layers, cache.info.steps, cache.info.dim)
        return TagFeatures(recipe, len(labels), shape, encoder_of(cache) | {"labels": labels}, recipe.seed, device)

    def _finished(self, folder: Path, recipe: Recipe, start: Start, world: World) -> dict:
        """The result that a round has. Raises RunError where it was trained by another recipe, on another shard set or
        from other weights; one of an earlier version does not name its set and its weights, and is taken."""
        index = self.index
        found: dict = {}
        problem: Exception | None = None
        if world.first:
            try:
                RunFolder.keep_recipe(folder, recipe)
                found = json.loads((folder / RESULT).read_text())
                if found.get("index", index.fingerprint) != index.fingerprint:
                    raise RunError(
                        f"The round at {folder} was trained on the shard set {found['index']}, and {index.folder} is "
                        f"{index.fingerprint}. Give the new run a name of its own with run.name=..., or remove the "
                        "folder."
                    )
                require_start([found], start, recipe.init, folder.parent)
            except (GamutError, OSError, ValueError) as error:
                damaged = RunError(f"{folder / RESULT} is damaged: {error}.")
                problem = error if isinstance(error, GamutError) else damaged
        world.agree(problem, "take the round's result")
        return world.broadcast(found)
