"""From a run to an exported folder of a format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gamut.export import images, programs, tensors
from gamut.export.folder import CARD, new_folder, require_free
from gamut.export.source import open_source
from gamut.files import write_text
from gamut.models.find import told
from gamut.train.trained_on import write_list

WRITERS = {
    "hf": images.write_hf,
    "timm": images.write_timm,
    "safetensors": tensors.write,
    "onnx": programs.write_onnx,
    "torch": programs.write_torch,
}


def export(
    place: str | Path,
    to: str,
    folder: Path,
    *,
    seconds: float | None = None,
    backbone: bool = False,
    encoder: str | Path | None = None,
) -> Iterator[str]:
    """Make `folder` of the model at `place`; what was done, a line at a time.

    seconds: the length that the model is laid out for, or, in a format of all lengths, the longest. backbone: without
    the classifier. encoder: the Whisper that a head reads. Raises ExportError where there is something at `folder`, or
    where the format cannot hold the model.
    """
    require_free(folder)
    source = open_source(place, encoder)
    if backbone:
        source = source.without_classifier()
    yield f"weights: {told(source.weights)}"
    with new_folder(folder) as made:
        yield from WRITERS[to](source, made, seconds)
        yield write_list(place, made)
        text = (made / CARD).read_text(encoding="utf-8")
        write_text(made / CARD, text.replace("FOLDER", folder.name))
