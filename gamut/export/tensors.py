"""`--to safetensors`: the folder that every part of Gamut opens, without a run folder and without the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gamut.errors import ExportError
from gamut.export.card import card
from gamut.export.folder import CARD
from gamut.export.source import Source
from gamut.files import write_text
from gamut.models.find import ENCODER, MODEL
from gamut.models.folder import CONFIG
from gamut.models.weights import save_weights

TAGS = """
from gamut.tag import Recording, load

model = load("FOLDER")
with Recording("clip.wav") as recording:
    for tagged in model.tag([recording]):
        print(tagged.spans[0].top(3))
"""
WEIGHTS = """
from gamut.models.weights import load_weights
from pathlib import Path

tensors, about = load_weights(Path("FOLDER/model.safetensors"))
print(about["model"], sorted(tensors)[:3])
"""


def write(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    """Fill a new folder; what was done, a line at a time. Raises ExportError where a length is asked for."""
    if seconds is not None:
        raise ExportError("--to safetensors holds all lengths that the run does: leave --seconds out.")
    write_weights(source, folder)
    tags = bool(source.labels) and (source.network is not None or source.speech is not None)
    what = "backbone" if not source.labels else "classifier" if source.network else "head on Whisper's features"
    kind = (
        f"Weights of a {what} that Gamut trained, for "
        f"Gamut: `gamut tag FOLDER`, `init=FOLDER`. `{MODEL}` says in its metadata all that is needed to use them."
    )
    layout = "A sound of any rate and length in; " + (
        f"probabilities of {len(source.labels)} classes out."
        if source.labels
        else "a vector a clip, or a token a patch."
    )
    write_text(folder / CARD, card(source, kind, layout, TAGS if tags else WEIGHTS))
    if source.network is None and source.speech is None:
        yield "the head alone: to use it, name its Whisper with --encoder, here or there"


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
