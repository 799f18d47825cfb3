"""Tiny models as their runs leave them, with weights that make a difference."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from finetune.objective import Classify
from gamut.data.memory import packed
from gamut.models.backbone import build
from gamut.models.tagger import Tagger
from gamut.models.weights import save_weights
from gamut.recipe import cli, schema
from gamut.recipe.policy import evaluation_policy
from gamut.recipe.resolved import resolved_yaml
from gamut.train.objective import described
from tests.tag.rounds import leave_round
from tests.tag.whispers import DIM

CLASSES = ["Dog", "Rain", "Siren, of a ship", "Speech"]
MEAN, STD = -6.0, 4.0
SMALL = ("model.dim=48", "model.depth=2", "model.heads=3", "precision=fp32")


def shaken(module: nn.Module, seed: int = 1) -> nn.Module:
    """With numbers added to every parameter: fresh weights have zeros and ones in many places."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


def a_classifier(folder: Path, *words: str, recipe: str = "esc10", trained: bool = False) -> tuple[Path, Classify]:
    """A fine-tuning round, without training or after a few steps of it, and its objective."""
    made = cli.parse("finetune", [recipe, *SMALL, "run.name=tiny", *words]).recipe
    task = Classify(made, len(CLASSES), MEAN, STD, 0, torch.device("cpu"), CLASSES)
    shaken(task.model)
    if trained:
        _train(task)
    return leave_round(folder, task.recipe, task.model, task.described()), task


def _train(task: Classify) -> None:
    """To tell noise of one loudness from that of others."""
    policy = replace(evaluation_policy(task.recipe), packs=1, tokens=None, clips=1)
    random = np.random.default_rng(0)
    noises = [(random.normal(0, 30 * 4**level, 64000)).astype(np.int16) for level in range(len(CLASSES))]
    with torch.no_grad():
        inputs = [task._inputs(packed([noise], policy), training=False).arguments for noise in noises]
    optimiser = torch.optim.Adam(task.model.parameters(), 1e-3)
    losses = []
    for step in range(16):
        patches, where, _ = inputs[step % len(inputs)]
        loss = F.cross_entropy(task.model(patches, where, None), torch.tensor([step % len(inputs)]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < sum(losses[:4])


def a_pretraining(folder: Path, *words: str) -> tuple[Path, schema.Recipe]:
    """A pretraining with one checkpoint, of a teacher that is not its student."""
    recipe = cli.parse("pretrain", ["asit_tiny", *SMALL, "run.name=pretrained", *words]).recipe
    checkpoint = folder / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
    (folder / "checkpoints" / "latest").write_text(f"{checkpoint.name}\n")
    about = described(recipe, MEAN, STD) | {"model": asdict(recipe.model)}
    for name, prefix, seed in (("objective", "teacher.backbone.", 1), ("model", "backbone.", 2)):
        state = {prefix + key: value for key, value in shaken(build(recipe.model), seed).state_dict().items()}
        save_weights(checkpoint / f"{name}.safetensors", state, about)
    state = {"step": 10, "epoch": recipe.epochs, "step_in_epoch": 0, "epoch_steps": 10}
    (checkpoint / "state.json").write_text(json.dumps({"state": state}))
    return folder, recipe


def a_head(folder: Path, pad_with: str = "zero") -> tuple[Path, Tagger]:
    """A round of training a head on the features of two blocks, as means of 10 steps of windows of 4 s."""
    about = schema.Head(kind="tl_tr", dim=16, time_heads=2, layer_heads=2)
    made = Tagger(about, 2, DIM, len(CLASSES))
    shaken(made)
    note = {
        "head": asdict(about), "shape": [2, 20, DIM], "labels": CLASSES, "loss": "bce",
        "encoder": {
            "name": "whisper_small", "model": {"kind": "whisper", "precision": "fp32"},
            "front": {"seconds": 4.0, "pad_with": pad_with}, "pooling": {"steps": 10}, "blocks": [0, 1],
            "fingerprint": "f",
        },
    }  # fmt: skip
    recipe = cli.parse("finetune", ["whisper_at", "run.name=head", "features=/secret/features"]).recipe
    return leave_round(folder, recipe, made, note), made.eval()
