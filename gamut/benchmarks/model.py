"""What both benchmarks ask of a model, from what `gamut.load` gives."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gamut
from gamut.embed.model import Embedded, Model
from gamut.errors import AudioError, RecipeError

MODEL = "GAMUT_MODEL"  # environment variable, for tools that load a model without a word of where it is
SCALE = 100.0  # floats beyond it are of another scale than [-1, 1]


def named(place: str | Path | None) -> Path:
    """Where the model is: `place`, or what GAMUT_MODEL in the environment says. Raises RecipeError for neither."""
    found = place or os.environ.get(MODEL, "")
    if not found:
        raise RecipeError(
            "No model is named: give its place (a run, a checkpoint, an exported folder, public weights), or set the "
            f"environment variable {MODEL} to it."
        )
    return Path(found)


def opened(place: Path, options: dict[str, Any]) -> Model:
    """`gamut.load`, with a sentence for an option that it does not have, which is typed as JSON."""
    if unknown := set(options) - set(inspect.signature(gamut.load).parameters):
        raise RecipeError(f"gamut.load has no option {min(unknown)!r}.")
    return gamut.load(place, **options)


def rows(audio: torch.Tensor) -> list[torch.Tensor]:
    """The sounds of a batch [sounds, samples]. Raises RecipeError for another shape, AudioError for no samples."""
    if not isinstance(audio, torch.Tensor) or audio.ndim != 2:
        shape = list(audio.shape) if hasattr(audio, "shape") else type(audio).__name__
        raise RecipeError(f"Sounds come as a tensor [sounds, samples] of mono audio at 16 kHz, not as {shape}.")
    if not audio.shape[1]:
        raise AudioError(f"The {len(audio)} sounds hold no sample.", "empty")
    return list(audio)


def regular(found: Embedded) -> Embedded:
    """The same at times that are equally far apart, from the first on: at each the step that is nearest.

    A sound of one window is like this already; where one window follows another the distance may differ.
    """
    times = found.times
    if len(times) < 3:
        return found
    step = times[1] - times[0]
    if np.allclose(np.diff(times), step, rtol=0, atol=1e-6):
        return found
    grid = times[0] + step * np.arange(round((times[-1] - times[0]) / step) + 1)
    return Embedded(found.values[np.searchsorted((times[1:] + times[:-1]) / 2, grid)], grid)


def saturated(audio: torch.Tensor) -> torch.Tensor:
    """Floats as a file holds them, in [-1, 1]. Raises AudioError for samples of another scale."""
    loudest = float(audio.abs().max()) if audio.numel() else 0.0
    if loudest > SCALE:
        raise AudioError(f"The sounds have samples of up to {loudest:.4g}, and floats are in [-1, 1].", "format")
    return audio.clamp(-1, 1)
