"""What Gamut itself makes of one waveform, by the way that scores are made: plan, batch, packed network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from gamut.audio.logmel import cut, normalise
from gamut.data.front import spectrogram
from gamut.data.memory import packed
from gamut.models.backbone import Backbone
from gamut.models.classifier import ClassifierNetwork
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy

from .models import MEAN, STD


@torch.no_grad()
def heard(network: ClassifierNetwork | Backbone, recipe: schema.Recipe, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """`mel` [frames, 128] normalised, `tokens` [T, dim], `embedding` [dim], and `logits` [classes] of a classifier."""
    samples = np.clip(np.rint(waveform * np.float32(32768)), -32768, 32767).astype(np.int16)
    batch = packed([samples], replace(evaluation_policy(recipe), packs=1, tokens=None, clips=1))
    mel = normalise(spectrogram(batch, recipe.front.mode, recipe.views.pad_with), MEAN, STD)
    pixels = cut(mel, batch.frames, batch.sizes, recipe.model.stride)
    vit = network.backbone if isinstance(network, ClassifierNetwork) else network
    where = vit.layout(batch.frames, batch.sizes)
    tokens = vit.eval()(pixels, where)
    embedding = vit.pool(tokens, where)
    found = {"mel": mel, "tokens": tokens, "embedding": embedding[0]}
    if isinstance(network, ClassifierNetwork):
        found["logits"] = network(pixels, where, None)[0]
        if network.by_frames:
            found["frames"] = network(pixels, where, None, frames=True)
    return {name: value.numpy() for name, value in found.items()}


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 in [-1, 1), 16-bit: tones that change, in noise that swells."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * np.floor(time * 3) % 900) * time)
    wave = tone + rng.normal(0.01, 0.02 + 0.1 * (np.floor(time) % 2), len(time))
    return (np.rint(wave * 32768) / 32768).astype(np.float32)
