"""Embeddings of sounds by any trained model.

import gamut

model = gamut.load("runs/asit_b")                       # or an exported folder, a public AST, a Whisper, a HuBERT
vectors = model.embed(["a.wav", "b.mp3"])               # float32 [2, dim]
frames = model.embed(waveform, 44100, level="frame")    # of each sound its values [steps, dim] and times [steps]
"""

from typing import Literal, get_args

Level = Literal["clip", "frame", "layer", "patch"]  # of what a vector is
LEVELS = get_args(Level)
