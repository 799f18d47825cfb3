"""`--to safetensors`: the folder that every part of Gamut opens, without a run folder and without the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gamut.errors import ExportError
from gamut.export.card import card
from gamut.export.folder import CARD
from gamut.export.source import WHISPER, Source
from gamut.files import write_text
from gamut.models.find import ENCODER, MODEL
from gamut.models.folder import CONFIG
from gamut.models.weights import save_weights

USE = """
import gamut
import numpy as np

model = gamut.load("FOLDER")
waveform = np.random.default_rng(0).normal(0, 0.1, 5 * 16000)  # yours: in [-1, 1), or a file's path
print(model.embed(waveform, 16000).shape)
"""
TAGS = """
for tagged in model.tag(waveform, 16000):
    print(tagged.spans[0].top(3))
"""
WEIGHTS = """
from gamut.models.weights import load_weights
from pathlib import Path

tensors, about = load_weights(Path("FOLDER/model.safetensors"))
print(about["labels"], sorted(tensors)[:3])
"""


def write(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    """Fill a new folder; what was done, a line at a time. Raises ExportError where a length is asked for."""
    if seconds is not None:
        raise ExportError("--to safetensors holds all lengths that the run does: leave --seconds out.")
    write_weights(source, folder)
    alone = source.network is None and source.speech is None  # a head without what it reads
    what = (
        "backbone" if not source.labels else "classifier" if source.network else f"head on features of {source.reads}"
    )
    command = "tag" if source.labels else "embed"
    known = source.network is not None or source.reads == WHISPER
    opened = f"`gamut {command} FOLDER{' --encoder WHISPER' if alone else ''}`, " if known else ""
    kind = (
        f"Weights of a {what} that Gamut trained, for Gamut: {opened}`init=FOLDER`. `{MODEL}` says in its metadata all "
        "that is needed to use them."
    )
    layout = "A sound of any rate and length in; " + (
        f"probabilities of {len(source.labels)} classes out."
        if source.labels
        else "a vector a clip, or a token a patch."
    )
    use = WEIGHTS if alone else USE.strip() + (TAGS if source.labels else "")
    write_text(folder / CARD, card(source, kind, layout, use))
    if alone and known:
        yield "the head alone: to use it, name its Whisper with --encoder, here or there"
    elif alone:
        yield f"the head alone, to go on training it (init=) on features of {source.reads}: only one on a Whisper tags"


def write_weights(source: Source, folder: Path) -> None:
    """The weights for Gamut; of a head with its encoder both."""
    save_weights(folder / MODEL, source.state, source.about)
    if source.speech is None:
        return
    encoder, inside = source.speech.whisper.encoder, folder / ENCODER
    inside.mkdir()
    write_text(inside / CONFIG, encoder.config.to_json_string())
    state = {f"model.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_weights(inside / MODEL, state, {})
