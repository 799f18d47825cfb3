"""Small sounds and models, as runs and other programs leave them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gamut.models.vit import VisionTransformer
from gamut.models.weights import save_weights
from gamut.recipe import schema
from gamut.recipe.resolved import resolved_yaml
from tests.models.whispers import saved_by_transformers

MODEL = schema.Model(dim=32, depth=2, heads=2, table_frames=192, drop_path=0.2)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """int16 [samples] at 16 kHz: a chord in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    chord = 0.2 * np.sin(2 * np.pi * (300 + 200 * seed) * time) * (1 + np.sin(3 * time))
    return ((chord + rng.normal(0, 0.02, len(time))) * 32767).astype(np.int16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 3, 1.3 and 2.2 s, the last with two channels at 44.1 kHz."""
    folder = tmp_path_factory.mktemp("sounds") / "some"
    folder.mkdir()
    for name, seconds in (("a.wav", 3.0), ("b.flac", 1.3)):
        soundfile.write(folder / name, sound(seconds, len(name)), 16000)
    both = np.stack([sound(6.0, 3), sound(6.0, 4)], 1)[: round(2.2 * 44100)]
    soundfile.write(folder / "c.wav", both, 44100, "PCM_16")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def asit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pretraining with a teacher in it."""
    folder = tmp_path_factory.mktemp("runs") / "asit"
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    vit = VisionTransformer(MODEL, seed=3)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    state = {f"teacher.backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    save_weights(checkpoint / "objective.safetensors", state, {})
    (folder / "checkpoints" / "latest").write_text(checkpoint.name)
    told = schema.Recipe(model=MODEL, front=schema.FrontEnd(mean=-5.0, std=4.0), step=schema.Step(clips=2))
    told = replace(told, run=schema.Run(name="run"), views=schema.Views(count=2, frames=192))
    (folder / "recipe.yaml").write_text(resolved_yaml(told))
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_transformers(tmp_path_factory.mktemp("whisper") / "tiny")
