"""Evaluation is a plan: index order, every clip once, the same score at any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from finetune.events import Events, timed_of
from finetune.objective import Classify, multi_hot
from gamut.data.loader import Loader
from gamut.data.share import Share, in_order
from gamut.errors import RunError
from gamut.evaluate import METRICS, Metric, usual_metric
from gamut.evaluate.events import Timed
from gamut.evaluate.scores import Scores
from gamut.plan import Clips, Policy, plan_evaluation
from gamut.preemption import PREEMPTION, Preempted
from gamut.recipe import schema
from gamut.shards import Index
from gamut.train.spans import Spans
from gamut.watchdog import WATCHDOG


def metric_of(finetune: schema.Finetune) -> Metric:
    """What a recipe's models are scored by."""
    return usual_metric(finetune.loss == "ce") if finetune.metric == "auto" else METRICS[finetune.metric]


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

    Raises Preempted, on all ranks, where one of them was told to end before it was through.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    gpu = objective.device.type == "cuda"
    plan = plan_evaluation(clips, policy)
    how = {"per_forward": per_forward, "neighbours": True, "workers": workers, "pin": gpu}
    share, frames, spans = Share(), Share(), Spans(objective.device)
    timed: Timed | None = None
    WATCHDOG.beat("an evaluation")
    loader = make_loader(index, plan, rank=rank, world=world, **how)
    for batch in (batch for _, batches in loader for batch in batches):
        if PREEMPTION.asked:
            share.left = True
            break
        logits = torch.zeros(0, objective.classes, device=objective.device)
        if batch.clips:
            spans.begin("forward")
            if isinstance(objective, Events):
                logits, found = objective.frames(batch)
                frames.add(batch, found)
            else:
                logits = objective.logits(batch)
            spans.end()
        WATCHDOG.beat()
        share.add(batch, {"target": multi_hot(batch, objective.classes), "logits": logits})
    parts: list = [(share.arrays(), share.holes, frames.arrays(), share.left)]
    if world > 1:
        mine, parts = parts[0], [None] * world
        dist.all_gather_object(parts, mine)
    if any(left for *_, left in parts):
        raise Preempted
    holes = sorted(f"{hole.key} ({hole.reason})" for _, some, *_ in parts for hole in some)
    if holes:
        raise RunError(
            f"{len(holes)} of the clips to be scored cannot be read: {', '.join(holes[:5])}. Repair or remove them "
            f"(`python -m gamut.shards verify {index.folder}` lists them) and run again."
        )
    if isinstance(objective, Events):
        median = objective.recipe.finetune.median_frames
        timed = timed_of(index, policy, median, **in_order(found for _, _, found, _ in parts))
    return Scores(**in_order(found for found, *_ in parts), timed=timed, seconds=spans.seconds()["forward"])
