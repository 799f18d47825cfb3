"""Rounds of fine-tuning as they lie on disk, without their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.objective import Classify
from gamut.models.weights import save_weights
from gamut.recipe import cli, schema
from gamut.recipe.resolved import resolved_yaml

CLASSES = ["Dog", "Rain", "Siren", "Speech"]
MEAN, STD = -6.0, 4.0


def a_run(folder: Path, *words: str) -> tuple[Path, Classify]:
    """A fine-tuning round as `finetune/run.py` leaves one, untrained, and its objective."""
    recipe = cli.parse("finetune", ["esc10", "model.dim=48", "model.depth=2", "precision=fp32", *words]).recipe
    task = Classify(recipe, len(CLASSES), MEAN, STD, 0, torch.device("cpu"))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    leave_round(folder, recipe, task.model, {**task.described(), "labels": CLASSES, "loss": "ce"})
    return folder, task


def leave_round(folder: Path, recipe: schema.Recipe, model: nn.Module, about: dict[str, Any]) -> Path:
    """What `finetune/run.py` leaves of weights, and their recipe: the last checkpoint, and the best epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
    save_weights(folder / "best.safetensors", model, {"best": {"epoch": 1.0}, "chosen_on": "test folds 5", **about})
    checkpoint = folder / "checkpoints" / "step-00000100"
    checkpoint.mkdir(parents=True, exist_ok=True)
    save_weights(checkpoint / "model.safetensors", model, about)
    state = {"step": 100, "epoch": recipe.epochs, "step_in_epoch": 0, "epoch_steps": 10}
    (checkpoint / "state.json").write_text(json.dumps({"state": state}))
    (folder / "checkpoints" / "latest").write_text(f"{checkpoint.name}\n")
    return folder
