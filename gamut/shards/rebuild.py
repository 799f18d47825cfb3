"""The index anew, from the tars themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from gamut.errors import ShardError
from gamut.shards.build import build
from gamut.shards.part import Part, scan
from gamut.shards.pool import spread
from gamut.shards.progress import Progress


def rebuild(folder: Path, workers: int = 1) -> int:
    """Write the index of the tars in `folder`, which `convert` wrote; the number of clips.

    Reads every byte: a tar that is cut off, or holds a clip whose audio is not what its KEY.json says, is refused
    rather than indexed as a shorter one. The class table is the conversion's, or, where that record is gone, what the
    clips' own labels show. Raises ShardError.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ShardError(f"There are no tars in {folder}. Make them: python -m gamut.shards convert --help")
    with Progress("indexing", len(tars)) as progress:
        parts = spread(_scan, tars, workers, progress.add)
    names = {part.name for part in parts if part.key}
    if not names:
        raise ShardError(f"There is no clip in the tars in {folder}.")
    build(folder, min(names), _class_table(folder, parts), parts, {"source": "index"})
    return sum(len(part.key) for part in parts)


def _scan(path: Path, advance: Callable[[int], None]) -> Part:
    try:
        with open(path, "rb") as file:
            part = scan(file, path)
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}.") from error
    except ShardError as error:
        raise ShardError(
            f"{error} Delete that tar and run the conversion again, which writes it anew; or delete it and index "
            "what is left."
        ) from error
    advance(1)
    return part


def _class_table(folder: Path, parts: list[Part]) -> list[str]:
    seen: dict[int, str] = {}
    for part in parts:
        for label, name in part.label_names.items():
            if seen.setdefault(label, name) != name:
                raise ShardError(f"Label {label} is both {seen[label]} and {name} in the tars in {folder}.")
    try:
        table = json.loads((folder / "index" / "convert.json").read_bytes())["labels"]
        if all(label < len(table) and table[label] == name for label, name in seen.items()):
            return table
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the record of the conversion did not come along with the tars
    return [seen.get(label, f"(class {label}, without clips)") for label in range(max(seen, default=-1) + 1)]
