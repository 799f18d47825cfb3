"""Fine-tuning on events with times: a classifier of frames, trained on strong and weak labels together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from finetune.objective import Classify, Inputs, LabelledBatch
from gamut.data.batch import PackedBatch
from gamut.data.events import cells, edges
from gamut.evaluate.events import Heard, Timed, smoothed
from gamut.models.pooling import linear_softmax
from gamut.numbers import RATE, columns
from gamut.plan import Policy
from gamut.shards import Index
from gamut.train.objective import Moment, Prepared, evaluating, mixed


@dataclass(frozen=True)
class TimedBatch(LabelledBatch):
    """A micro-batch of C clips with N columns of patches in all, ready for the classifier of frames."""

    heard: torch.Tensor  # float32 [N, classes], 1 where an event is heard in a column
    known: torch.Tensor  # float32 [N, classes], 1 where that is known: in strong clips, of classes that have times
    weak: torch.Tensor  # float32 [C], 1 for clips that are trained on by their labels

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *super().arguments, True


class Events(Classify):
    """Binary cross-entropy on the frames of clips with events, and on clips, by the linear softmax of their frames,
    where labels have no times.

    A strong clip's classes without an event are absent from all its frames; but a label of it that no event has is
    somewhere in it, so that class is left out of the clip's loss. Frames are weighed by `finetune.weight_frames` and
    divided by the step's frames of strong clips, clips by `finetune.weight_clips` and the step's weak clips. Where
    frames have no weight, every clip is weak.
    """

    count_names = ("strong_frames", "weak_clips")

    def prepare(self, batch: PackedBatch, at: Moment) -> Prepared:
        strong = self._strong(batch)
        sizes = np.array([columns(size, self.recipe.model.stride) for size in batch.sizes], np.int64)
        counts = [float(sizes[strong].sum()), float((~strong).sum())]
        return Prepared(self._inputs(batch, training=True), torch.tensor(counts, dtype=torch.float64))

    def _inputs(self, batch: PackedBatch, training: bool) -> Inputs:
        inputs = super()._inputs(batch, training)
        if not training:
            return inputs
        assert isinstance(inputs, LabelledBatch)
        strong = self._strong(batch)
        widths = inputs.where.columns
        known = torch.from_numpy(strong).float()[:, None].repeat(1, self.classes)
        heard = torch.zeros(sum(inputs.where.widths) * self.classes, device=self.device)
        if strong.any():
            assert batch.label_timed is not None
            clip = torch.repeat_interleave(torch.arange(batch.clips), batch.label_offset.diff())
            known[clip[~batch.label_timed], batch.label[~batch.label_timed]] = 0.0
            column, label = self._cells(batch).T
            flat = torch.from_numpy(column * self.classes + label).to(self.device, non_blocking=True)
            heard = heard.index_fill(0, flat, 1.0)
        rows = len(heard) // self.classes
        of_columns = known.to(self.device, non_blocking=True).repeat_interleave(widths, dim=0, output_size=rows)
        weak = torch.from_numpy(~strong).float().to(self.device, non_blocking=True)
        return TimedBatch(
            inputs.patches,
            inputs.where,
            inputs.drop_keys,
            inputs.targets,
            inputs.partner_holes,
            heard.view(-1, self.classes),
            of_columns,
            weak,
        )

    def _strong(self, batch: PackedBatch) -> np.ndarray:
        """bool [C]: clips that are trained on by their events."""
        if batch.label_timed is None or not self.recipe.finetune.weight_frames:
            return np.zeros(batch.clips, bool)
        timed = np.concatenate([[0], np.cumsum(batch.label_timed.numpy())])
        return np.diff(timed[batch.label_offset.numpy()]) > 0

    def _cells(self, batch: PackedBatch) -> np.ndarray:
        """int64 [k, 2]: (column, class) of what is heard, from a batch in the host's memory."""
        parts = batch.event_offset, batch.event_onset, batch.event_end, batch.event
        offset, onset, end, label = (part.numpy() for part in parts if part is not None)
        segment = np.repeat(np.arange(batch.segments), np.diff(offset))
        stride = self.recipe.model.stride
        wide = columns(np.array(batch.sizes, np.int64), stride)
        pool = np.ones_like(wide) if batch.pool is None else batch.pool.numpy()
        return cells(np.stack([segment, onset, end, label], 1), wide, batch.hop.numpy(), pool, stride)

    def loss(
        self, engine: nn.Module, prepared: Prepared, totals: dict[str, float], at: Moment
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        clips, finetune = prepared.inputs, self.recipe.finetune
        with mixed(self.model, self.recipe.precision, self.device):
            frames = engine(*clips.arguments).float()
        of_frames = F.binary_cross_entropy_with_logits(frames, self._smooth(clips.heard), reduction="none")
        whole = linear_softmax(frames, clips.where.columns)
        of_clips = F.binary_cross_entropy_with_logits(whole, self._smooth(clips.targets), reduction="none")
        strong = (of_frames * clips.known).sum() / self.classes / max(totals["strong_frames"], 1.0)
        weak = (of_clips * clips.weak[:, None]).sum() / self.classes / max(totals["weak_clips"], 1.0)
        loss = finetune.weight_frames * strong + finetune.weight_clips * weak
        return loss, {"loss": loss.detach(), "loss/frames": strong.detach(), "loss/clips": weak.detach()}

    def _smooth(self, target: torch.Tensor) -> torch.Tensor:
        smoothing = self.recipe.finetune.label_smoothing
        return target * (1.0 - smoothing) + (1.0 - target) * smoothing / self.classes

    @torch.no_grad()
    def frames(self, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Scores of a batch, float32 [C, classes], and of its N frames, without augmentation: `row` int64 [N], of the
        clip that each is of, and `probability` float32 [N, classes]."""
        clips = self._inputs(batch, training=False)
        patches, where, _ = clips.arguments
        with evaluating(self.model, self.recipe.precision, self.device):
            logits = self.model(patches, where, None, True).float()
        rows = torch.repeat_interleave(batch.row, torch.tensor(where.widths))
        return linear_softmax(logits, where.columns), {"row": rows, "probability": logits.sigmoid()}


def timed_of(index: Index, policy: Policy, median: int, row: np.ndarray, probability: np.ndarray) -> Timed:
    """The clips with events among those scored under an evaluation's policy, and their frames, `smoothed` over `median`
    of them.

    row: int64 [frames], of each frame's clip in the index, ascending; probability: float32 [frames, classes].
    """
    rows, first, counts = np.unique(row, return_index=True, return_counts=True)
    timing = policy.hops[0], policy.pools[0], policy.stride
    clips = []
    for one, begin, count in zip(rows.tolist(), first.tolist(), counts.tolist()):
        if len(events := index.events(one)):
            times = edges(count, *timing, int(index.samples[one]))
            own = smoothed(probability[begin : begin + count], median)
            clips.append(Heard(own, times, events / [RATE, RATE, 1]))
    return Timed.of(clips, index.labels)
