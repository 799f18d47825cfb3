"""Tags and text of recordings.

from gamut.tag import Recording, load

model = load("runs/esc50/test-1-seed-0")                              # a fine-tuning run
model = load("models/whisper-tiny", head="runs/whisper_at", text=True)    # a Whisper and a head
with Recording("clip.wav") as recording:
    for tagged in model.tag([recording], every=2.0):
        print(tagged.spans[0].top(3), tagged.text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamut.tag.choose import load
    from gamut.tag.recording import Recording
    from gamut.tag.result import Span, Tagged, Words

__all__ = ["Recording", "Span", "Tagged", "Words", "load"]
_PLACES = {"Recording": "recording", "Span": "result", "Tagged": "result", "Words": "result", "load": "choose"}


def __getattr__(name: str) -> Any:
    """These import torch, which whoever only asks a command for help need not wait for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
