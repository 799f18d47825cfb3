"""The encoder that X-ARES asks for (J. Zhang et al., "X-ARES", 2025), of any model.

X-ARES loads this module by its path and makes its one class that ends in `Encoder`, so the model's place stands in the
environment: `GAMUT_MODEL=runs/asit_b python -m xares.run gamut/benchmarks/xares.py tasks/esc10_task.py --max-jobs 0`
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from gamut.benchmarks.model import named, opened, regular, rows, saturated
from gamut.errors import RecipeError
from gamut.numbers import RATE

TRIED = 4  # seconds, of which the distance of the steps is seen


class GamutEncoder(nn.Module):
    """The frames of any model that `gamut.load` opens.

    It stays on the device that `gamut.load` gave it, and takes sounds from any. X-ARES keeps embeddings and scores in
    folders named after the encoder's class: each model makes a class of its own, named after its place and a digest of
    its weights, so that no model is scored by what another one left there.

    >>> GamutEncoder("runs/asit_b")(audio).shape      # audio [2, 50000], in [-1, 1]; doctest: +SKIP
    torch.Size([2, 20, 768])
    """

    sampling_rate = RATE

    def __init__(self, place: str | Path | None = None, **options: Any) -> None:
        """place, options: as for `gamut.load`; without a place GAMUT_MODEL says it. Raises as `gamut.load` does."""
        super().__init__()
        found = named(place)
        self.model = opened(found, options)
        self.output_dim = self.model.dim
        (tried,) = self.model.embed(np.zeros(TRIED * RATE, np.float32), RATE, level="frame")
        if len(tried.times) < 2:
            raise RecipeError(f"{self.model.what} gives a single step in {TRIED} s: X-ARES needs steps over time.")
        self.hop_size_in_ms = round(1000 * float(tried.times[1] - tried.times[0]), 3)
        told = xxhash.xxh3_64_hexdigest(json.dumps(self.model.decides, sort_keys=True).encode())[:8]
        name = re.sub(r"\W+", "_", found.resolve().stem)
        self.__class__ = type(f"{name}_{told}_Encoder", (type(self),), {"__module__": __name__})

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """float32 [sounds, steps, dim] on the device of the sounds.

        audio: float [sounds, samples] (or [samples]) at 16 kHz. What lies beyond [-1, 1] is saturated, as in a file:
        X-ARES' own check sends noise of deviation 1. Raises AudioError for samples that are no sound.
        """
        if audio.ndim == 1:
            audio = audio[None]
        found = [regular(one) for one in self.model.embed(rows(saturated(audio)), RATE, level="frame")]
        if not found:
            return torch.zeros(0, 0, self.output_dim, device=audio.device)
        return torch.from_numpy(np.stack([one.values for one in found])).to(audio.device)
