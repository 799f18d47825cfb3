"""A pretraining as a whole: the objective that the recipe names, probed and looked at while it is trained."""

from __future__ import annotations

from gamut.estimate.packs import forward_of
from gamut.plan import Catalogue, Clips
from gamut.preemption import Preempted
from gamut.probe.features import Encoder, FrontEnd
from gamut.probe.labelled import labelled
from gamut.probe.watch import Watch
from gamut.recipe.policy import training_policy
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.select import select
from gamut.train.main import Work
from gamut.train.objective import Moment, pretraining
from gamut.train.preview import short_clips_warning
from gamut.train.session import begin, open_session
from gamut.train.world import World
from pretrain.pictures import Pictures


class Pretrain(Work):
    """One run, on the clips that the recipe selects."""

    def __init__(self, recipe: Recipe, index: Index) -> None:
        super().__init__(recipe, index)
        self.clips = self._select(index)
        self.probed, self.reason = labelled(recipe, index) if recipe.probe.every_epochs > 0 else (None, "")

    def _select(self, index: Index) -> Clips | Catalogue:
        recipe = self.recipe
        return select(index, recipe.subset, recipe.plan.weights, training_policy(recipe))

    def first(self) -> tuple[Recipe, Clips | Catalogue, str]:
        return self.recipe, self.clips, f"probe: {self.probed or self.reason or 'none'}"

    def forecast(self, recipe: Recipe, ranks: int) -> list[tuple[str, str]]:
        from gamut.estimate.here import rows  # here: only a dry run needs it

        return rows(recipe, ranks)

    def run(self, world: World, mean: float, std: float) -> bool:
        from gamut.report.write import at_end  # here: a dry run need not wait for DeepSpeed and matplotlib
        from gamut.train.loop import train

        recipe = self.recipe
        if world.first and (warning := short_clips_warning(recipe.views, self.clips)):
            print(f"warning: {warning}", flush=True)
        if world.first and (self.probed or self.reason):
            print(f"probe: {self.probed}" if self.probed else f"no probe: {self.reason}", flush=True)
        objective = pretraining(recipe, mean, std, world.device)
        as_begun = begin(objective, recipe, world, recipe.init) or not recipe.init
        front = FrontEnd(mean, std, recipe.front.mode)
        encode = Encoder(objective.backbone, front, recipe.precision, world.device, recipe.probe.rows)
        with (
            open_session(recipe, world, self.index, self.clips, forward_of(recipe, world), self._select) as session,
            Watch(session.recipe, self.probed, encode, world, session.folder, session.tracker) as watch,
        ):
            draw = Pictures(objective, encode, recipe, self.index, self.clips, session.tracker)

            def at_epoch_end(epoch: int, at: Moment) -> dict[str, float]:
                draw(epoch, at)
                return watch.after_epoch(epoch, at)

            try:
                watch.before(as_begun)
            except Preempted:
                session.tracker.close("preempted")
                raise
            result = train(objective, session, at_epoch_end)
            if result.status == "finished":
                watch.finish()
            session.tracker.close(result.status)
        if world.first and result.status == "finished":
            at_end(session.folder, recipe)
        if world.first:
            print(f"{result.status}: {session.folder}, checkpoint {result.checkpoint}", flush=True)
        return result.status == "finished"
