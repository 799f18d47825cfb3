"""HEAR's common API (J. Turian et al., "HEAR: Holistic Evaluation of Audio Representations", 2022) for any model.

Its tools load this module by name: `hear-validator gamut.benchmarks.hear -m PLACE`,
`python -m heareval.embeddings.runner gamut.benchmarks.hear --model PLACE`.

>>> model = load_model("runs/asit_b")      # doctest: +SKIP
>>> get_scene_embeddings(audio, model).shape      # audio [8, 80000], in [-1, 1]; doctest: +SKIP
torch.Size([8, 768])
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from gamut.benchmarks.model import named, opened, regular, rows
from gamut.embed.model import Model
from gamut.numbers import RATE


class HearModel(nn.Module):
    """What HEAR asks of a model. It stays on the device that `gamut.load` gave it, and takes sounds from any."""

    sample_rate = RATE

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.scene_embedding_size = self.timestamp_embedding_size = model.dim


def load_model(model_file_path: str = "", **options: Any) -> HearModel:
    """model_file_path: what `gamut.load` opens, a folder too; else the environment variable GAMUT_MODEL says it.

    options: of `gamut.load`, as in heareval's `--model-options '{"window": 10}'`. Raises CheckpointError, RecipeError.
    """
    return HearModel(opened(named(model_file_path), options))


def get_scene_embeddings(audio: torch.Tensor, model: HearModel) -> torch.Tensor:
    """float32 [sounds, dim] on the device of the sounds: the vector of each clip (`Model.embed`, level `clip`).

    audio: float [sounds, samples] at 16 kHz in [-1, 1]. Raises AudioError for samples that are none, RecipeError for
    another shape.
    """
    vectors = model.model.embed(rows(audio), RATE)
    return torch.from_numpy(vectors).to(audio.device)


def get_timestamp_embeddings(audio: torch.Tensor, model: HearModel) -> tuple[torch.Tensor, torch.Tensor]:
    """(float32 [sounds, steps, dim], float32 [sounds, steps]): the frames of each sound, and the middles of these in
    milliseconds, equally far apart. On the device of the sounds.

    audio: as for scenes. How far apart is the model's own: 160 ms of an ASiT, 20 ms of a Whisper or a HuBERT.
    """
    found = [regular(one) for one in model.model.embed(rows(audio), RATE, level="frame")]
    if not found:
        return torch.zeros(0, 0, model.timestamp_embedding_size), torch.zeros(0, 0)
    values = torch.from_numpy(np.stack([one.values for one in found]))
    times = torch.from_numpy(np.stack([1000 * one.times for one in found]).astype(np.float32))
    return values.to(audio.device), times.to(audio.device)
