"""What a pretraining looks like: what the student rebuilds and where the teacher looks, of a few fixed clips."""

from __future__ import annotations

import numpy as np

from gamut.audio.logmel import unpatch
from gamut.data.assemble import assemble
from gamut.numbers import RATE
from gamut.plan import Clips, plan_evaluation
from gamut.probe.features import Encoder
from gamut.probe.pictures import attention_figures
from gamut.recipe.policy import evaluation_policy
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.track import figures
from gamut.track.tracker import NullTracker
from gamut.train.objective import Moment, Pretraining
from gamut.train.schedule import is_due


class Pictures:
    """Reconstructions (where the objective has any) and attention of two clips, every `track.picture_epochs` epochs and
    after the last.

    All ranks call it, as a forward may be a matter for all; the first one's tracker keeps them. A picture that cannot
    be made is said, and the training goes on.
    """

    def __init__(
        self, objective: Pretraining, encode: Encoder, recipe: Recipe, index: Index, clips: Clips, tracker: NullTracker
    ) -> None:
        self.objective = objective
        self.encode = encode
        self.recipe = recipe
        self.index = index
        self.tracker = tracker
        self.clips = clips.select(np.array([0, len(clips.row) // 2]))
        self.epoch = plan_evaluation(self.clips, evaluation_policy(recipe))

    def __call__(self, epoch: int, at: Moment) -> None:
        if not is_due(epoch + 1, self.recipe.epochs, self.recipe.track.picture_epochs):
            return
        try:
            if self.objective.rebuilds:
                self._reconstructions(epoch, at)
            attention = attention_figures(self.encode, self.index, self.clips, self.recipe, f"after epoch {epoch + 1}")
            for clip, figure in enumerate(attention):
                self.tracker.figure(f"attention-{clip}", figure, at.step)
        except Exception as error:  # a picture is no reason to stop a training
            print(f"warning: no pictures of epoch {epoch + 1} ({type(error).__name__}: {error}).", flush=True)

    def _reconstructions(self, epoch: int, at: Moment) -> None:
        batch = assemble(self.index, self.epoch, list(range(self.epoch.steps * self.epoch.packs)))
        clean, hidden, rebuilt = self.objective.rebuild(batch, at)
        mels = [unpatch(part.float()).cpu().numpy() for part in (clean, hidden, rebuilt)]
        start = 0
        for clip, frames in enumerate(batch.sizes):
            span = slice(start, start + frames)
            start += frames
            key = self.index.key(int(batch.row[clip]))
            seconds = float(batch.hop[clip]) / RATE
            title = f"{key}, student after epoch {epoch + 1}"
            figure = figures.reconstruction(mels[0][span], mels[1][span] > 0, mels[2][span], title, seconds)
            self.tracker.figure(f"reconstruction-{clip}", figure, at.step)
