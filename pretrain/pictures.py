"""What a pretraining looks like: what is hidden, what the student rebuilds, where the teacher looks, of fixed clips."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gamut.audio.logmel import unpatch
from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch
from gamut.models.layout import BANDS
from gamut.numbers import PATCH, RATE
from gamut.plan import Catalogue, Clips, plan_evaluation
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
    """Masks and reconstructions (where the objective has any) and attention of two clips, every `track.picture_epochs`
    epochs and after the last.

    All ranks call it, as a forward may be a matter for all; the first one's tracker keeps them. A picture that cannot
    be made is said, and the training goes on.
    """

    def __init__(
        self,
        objective: Pretraining,
        encode: Encoder,
        recipe: Recipe,
        index: Index,
        clips: Clips | Catalogue,
        tracker: NullTracker,
    ) -> None:
        self.objective = objective
        self.encode = encode
        self.recipe = recipe
        self.index = index
        self.tracker = tracker
        self.clips = clips.select(np.array([0, len(clips) // 2]))
        self.epoch = plan_evaluation(self.clips, evaluation_policy(recipe))

    def __call__(self, epoch: int, at: Moment) -> None:
        if not is_due(epoch + 1, self.recipe.epochs, self.recipe.track.picture_epochs):
            return
        try:
            self._masks(epoch, at)
            if self.objective.rebuilds:
                self._reconstructions(epoch, at)
            attention = attention_figures(self.encode, self.index, self.clips, self.recipe, f"after epoch {epoch + 1}")
            for clip, figure in enumerate(attention):
                self.tracker.figure(f"attention-{clip}", figure, at.step)
        except Exception as error:  # a picture is no reason to stop a training
            print(f"warning: no pictures of epoch {epoch + 1} ({type(error).__name__}: {error}).", flush=True)

    def _masks(self, epoch: int, at: Moment) -> None:
        batch = self._batch()
        found = self.objective.masked(batch, at)
        if found is None:
            return
        for clip, (key, seconds, (clean, hidden, seen)) in enumerate(self._each(batch, found)):
            touched = hidden.reshape(-1, PATCH, BANDS, PATCH).any(axis=(1, 3)) > 0
            share = f"{(hidden > 0).mean():.0%} of the pixels, in {touched.mean():.0%} of the patches"
            rows = {f"{key}, epoch {epoch + 1}: hidden are {share}": (np.where(hidden > 0, 0, clean), hidden > 0)}
            if seen[hidden > 0].any():  # else it is the same
                rows["as the student sees it"] = (seen, hidden > 0)
            self.tracker.figure(f"masks-{clip}", figures.masks(clean, rows, seconds), at.step)

    def _reconstructions(self, epoch: int, at: Moment) -> None:
        batch = self._batch()
        for clip, (key, seconds, mels) in enumerate(self._each(batch, self.objective.rebuild(batch, at))):
            title = f"{key}, student after epoch {epoch + 1}"
            figure = figures.reconstruction(mels[0], mels[1] > 0, mels[2], title, seconds)
            self.tracker.figure(f"reconstruction-{clip}", figure, at.step)

    def _batch(self) -> PackedBatch:
        return assemble(self.index, self.epoch, list(range(self.epoch.steps * self.epoch.packs)))

    def _each(
        self, batch: PackedBatch, parts: tuple[torch.Tensor, ...]
    ) -> Iterator[tuple[str, float, list[np.ndarray]]]:
        """(key, seconds of a frame, parts as float32 [frames, 128]) of each clip, from patches [N, 256] of all."""
        mels = [unpatch(part.float()).cpu().numpy() for part in parts]
        start = 0
        for clip, frames in enumerate(batch.sizes):
            span = slice(start, start + frames)
            start += frames
            yield self.index.key(int(batch.row[clip])), float(batch.hop[clip]) / RATE, [mel[span] for mel in mels]
