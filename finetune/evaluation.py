"""Evaluation is a plan: index order, every clip once, the same score at any number of ranks."""

from __future__ import annotations

import time
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
    make_loader: Callable[..., Iterable] = Loader,
) -> Scores:
    """Scores of every clip, alike on every rank. Raises RunError where a clip cannot be read: a score over fewer
    clips than it claims is a wrong score.

    Each pack is a forward of its own: which clips share one is then the plan's, and no matter of how many ranks.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    loader = make_loader(index, plan_evaluation(clips, policy), rank=rank, world=world, per_forward=1, workers=workers)
    share, seconds = Share(), 0.0
    for _, batches in loader:
        for batch in batches:
            since = time.perf_counter()
            logits = objective.logits(batch).cpu() if batch.clips else torch.zeros(0, objective.classes)  # waits for it
            seconds += time.perf_counter() - since
            share.add(batch, {"target": multi_hot(batch, objective.classes), "logits": logits})
    parts: list = [(share.arrays(), share.holes)]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, (share.arrays(), share.holes))
    holes = sorted(f"{hole.key} ({hole.reason})" for _, some in parts for hole in some)
    if holes:
        raise RunError(
            f"{len(holes)} of the clips to be scored cannot be read: {', '.join(holes[:5])}. Repair or remove them "
            f"(`python -m gamut.shards verify {index.folder}` lists them) and run again."
        )
    return Scores(**in_order(found for found, _ in parts), seconds=seconds)
