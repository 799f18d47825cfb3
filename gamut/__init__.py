"""Gamut: distributed pretraining and fine-tuning of audio transformers.

import gamut

model = gamut.load("runs/asit_b")       # docs/using.md
model.embed(["a.wav", "b.mp3"]).shape   # (2, 768)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamut.embed.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """It imports torch, which whoever only asks a command for help need not wait for."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("gamut.embed.load").load
