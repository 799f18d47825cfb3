"""From a run to an exported folder of a format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gamut.export import tensors
from gamut.export.folder import CARD, new_folder, require_free
from gamut.export.source import open_source
from gamut.files import write_text
from gamut.models.find import told

WRITERS = {"safetensors": tensors.write}


def export(place: str | Path, to: str, folder: Path) -> Iterator[str]:
    """Make `folder` of the model at `place`; what was done, a line at a time.

    Raises ExportError where there is something at `folder`, or where the format cannot hold the model.
    """
    require_free(folder)
    source = open_source(place)
    yield f"weights: {told(source.weights)}"
    with new_folder(folder) as made:
        WRITERS[to](source, made)
        text = (made / CARD).read_text(encoding="utf-8")
        write_text(made / CARD, text.replace("FOLDER", folder.name))
