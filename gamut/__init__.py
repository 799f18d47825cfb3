"""Gamut: distributed pretraining and fine-tuning of audio transformers.

import gamut

model = gamut.load("runs/asit_b")       # docs/using.md
model.embed(["a.wav", "b.mp3"]).shape   # (2, 768)
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamut.embed.load import load

__all__ = ["load"]

# Of the requirements those without which no command begins.
if _missing := [name for name in ("numpy", "rich", "omegaconf", "xxhash") if find_spec(name) is None]:

    class MissingError(ImportError):
        """This Python is not the one that has what Gamut needs."""

    _before = sys.excepthook

    def _sentence(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """As commands say their errors: this one comes before any of them can."""
        print(f"error: {error}", file=sys.stderr) if kind is MissingError else _before(kind, error, trace)

    sys.excepthook = _sentence
    raise MissingError(
        f"{sys.executable} has no {', '.join(_missing)}. In the clone: `make env`, then `source .venv/bin/activate`; "
        "elsewhere `pip install -r requirements.txt`."
    )


def __getattr__(name: str) -> Any:
    """It imports torch, which whoever only asks a command for help need not wait for."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("gamut.embed.load").load
