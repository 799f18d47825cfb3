"""One point of a sweep: the score, and what it costs a clip. What was scored before is read from its file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.evaluation import evaluate, metric_of
from finetune.points import Point, at
from finetune.trained import Subject, Trained
from gamut.accelerator import accelerator
from gamut.files import write_text
from gamut.models.vit import PIXELS
from gamut.plan import Clips, Policy, plan_evaluation
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy
from gamut.shards import Index

FORWARD = 8192  # tokens in one forward, about; more clips at once would only take more memory


class Scorer:
    """Scores points, each into a file of its own in `folder`, named by all that its score is made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(accelerator())
        self._subject: tuple[Trained, Subject] | None = None

    def score(self, one: Trained, index: Index, clips: Clips, point: Point) -> tuple[dict[str, Any], bool]:
        """(the point's entry, whether it was scored now). Raises RunError where a clip cannot be read."""
        recipe = at(one.recipe, point)
        subject = self.subject(one, index)
        policy = _policy(recipe, clips)
        made_of = {
            "weights": subject.digest,
            "index": index.fingerprint,
            "clips": clips.fingerprint(),
            "plan": policy.fields(),
            "front": [subject.front.mean, subject.front.std, recipe.front.mode, recipe.views.pad_with],
            "precision": recipe.precision,
            "metric": metric_of(recipe.finetune).name,
        }
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        file = self.folder / f"{digest[:16]}.json"
        known = _known(file)
        entry = known or self._score(subject, index, clips, policy, point)
        if not known:
            write_text(file, json.dumps(entry))
        asked = {"axis": point.axis, "value": point.value}
        return entry | asked | {"run": str(one.folder), "seed": recipe.seed, "test": list(one.test)}, not known

    def subject(self, one: Trained, index: Index) -> Subject:
        """The round's model; only the last one stays in memory."""
        if self._subject is None or self._subject[0] is not one:
            self._subject = one, Subject(one, index, self.device)
        return self._subject[1]

    def _score(self, subject: Subject, index: Index, clips: Clips, policy: Policy, point: Point) -> dict[str, Any]:
        task = subject.at(point)
        recipe = task.recipe
        loader = recipe.loader
        scores = evaluate(task, index, clips, policy, workers=loader.workers, per_forward=loader.per_forward)
        metric = metric_of(recipe.finetune)
        values = scores.values(metric)
        epoch = plan_evaluation(clips, policy)
        return {
            "metric": metric.name,
            "score": values[metric.name],
            "metrics": values,
            "clips": len(clips),
            "frames_a_clip": float(epoch.frames.mean()),
            "tokens_a_clip": float(epoch.tokens.mean()),
            "gflop_a_clip": float(forward_flops(epoch.tokens, recipe.model, task.classes).mean() / 1e9),
            "ms_a_clip": 1000.0 * scores.seconds / len(clips),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }


def _known(file: Path) -> dict[str, Any]:
    """What a point's file says; empty where there is none, or a damaged one: the point is then scored anew."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _policy(recipe: schema.Recipe, clips: Clips) -> Policy:
    """Every clip once, so many a pack that a pack of the longest has about FORWARD tokens."""
    one = plan_evaluation(clips, evaluation_policy(recipe))  # packs of one clip
    fit = max(1, FORWARD // int(one.tokens.max()))
    return evaluation_policy(replace(recipe, step=schema.Step(packs=1, clips=fit)))


def forward_flops(tokens: np.ndarray, model: schema.Model, classes: int) -> np.ndarray:
    """float64 [n]: operations (two a multiply-add) of the matrix products in one forward over clips of so many tokens,
    class tokens included: patches, blocks, attention (which grows with the square), pooling and classifier."""
    n = np.asarray(tokens, np.float64)
    dim, hidden = model.dim, int(model.dim * model.mlp_ratio)
    patches = n - (model.pooling == "cls") - model.distilled
    flops = 2.0 * PIXELS * dim * patches
    flops += model.depth * (2.0 * n * (4 * dim * dim + 2 * dim * hidden) + 4.0 * n * n * dim)
    if model.pooling == "attention":
        flops += 2.0 * n * 2 * dim * dim + 4.0 * n * dim + 2.0 * dim * dim  # keys and values, the query, its projection
    return flops + 2.0 * dim * classes
