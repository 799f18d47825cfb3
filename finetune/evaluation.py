"""Evaluation is a plan: index order, every clip once, the same score at any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from finetune.objective import Classify, multi_hot
from gamut.data.loader import Loader
from gamut.data.share import Share, in_order
from gamut.errors import RunError
from gamut.evaluate import METRICS, Metric, usual_metric
from gamut.evaluate.metrics import confusion
from gamut.plan import Clips, Policy, plan_evaluation
from gamut.recipe import schema
from gamut.shards import Index
from gamut.train.spans import Spans


def metric_of(finetune: schema.Finetune) -> Metric:
    """What a recipe's models are scored by."""
    return usual_metric(finetune.loss == "ce") if finetune.metric == "auto" else METRICS[finetune.metric]


@dataclass(frozen=True)
class Scores:
    """One row a clip, in index order."""

    row: np.ndarray  # int64 [n]
    target: np.ndarray  # float32 [n, classes]
    logits: np.ndarray  # float32 [n, classes]
    seconds: float = 0.0  # that this process's log-mels and forwards took

    def values(self, metric: Metric) -> dict[str, float]:
        """The score under the metric's name, and what is logged with it. float64, computed once."""
        return {name: float(value) for name, value in metric.values(self.target, self.logits).items()}

    def confusion(self) -> np.ndarray:
        """int64 [classes, classes]: row truth, column prediction; for classes that exclude each other."""
        return confusion(self.target.argmax(1), self.logits.argmax(1), self.target.shape[1])

    def by_class(self, metric: Metric) -> list[float | None]:
        """The metric of each class, None for one that no clip has; empty where the metric has no such values."""
        if metric.by_class is None:
            return []
        values = metric.by_class(self.target, self.logits)
        return [None if np.isnan(value) else float(value) for value in values]

    def save(self, path: Path, index: Index) -> None:
        """Keys, targets and logits as an .npz that any tool reads (no pickles)."""
        keys = np.array([index.key(int(row)) for row in self.row])
        np.savez(path, key=keys, row=self.row, target=self.target, logits=self.logits)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as scores:
            return cls(scores["row"], scores["target"], scores["logits"])


def evaluate(
    objective: Classify,
    index: Index,
    clips: Clips,
    policy: Policy,
    *,
    workers: int,
    per_forward: int = 1,
    make_loader: Callable[..., Iterable] = Loader,
) -> Scores:
    """Scores of every clip, alike on every rank. Raises RunError where a clip cannot be read: a score over fewer
    clips than it claims is a wrong score.

    As many packs as in training, `per_forward`, are joined in a forward, the same ones at any number of ranks, where
    the scores have the same bits. The logits stay on the device until all are there, or many.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    gpu = objective.device.type == "cuda"
    plan = plan_evaluation(clips, policy)
    how = {"per_forward": per_forward, "neighbours": True, "workers": workers, "pin": gpu}
    share, spans = Share(), Spans(objective.device)
    for _, batches in make_loader(index, plan, rank=rank, world=world, **how):
        for batch in batches:
            logits = torch.zeros(0, objective.classes, device=objective.device)
            if batch.clips:
                spans.begin("forward")
                logits = objective.logits(batch)
                spans.end()
            share.add(batch, {"target": multi_hot(batch, objective.classes), "logits": logits})
    parts: list = [(share.arrays(), share.holes)]
    seconds = spans.seconds()["forward"]
    if world > 1:
        mine, parts = parts[0], [None] * world
        dist.all_gather_object(parts, mine)
    holes = sorted(f"{hole.key} ({hole.reason})" for _, some in parts for hole in some)
    if holes:
        raise RunError(
            f"{len(holes)} of the clips to be scored cannot be read: {', '.join(holes[:5])}. Repair or remove them "
            f"(`python -m gamut.shards verify {index.folder}` lists them) and run again."
        )
    return Scores(**in_order(found for found, _ in parts), seconds=seconds)
