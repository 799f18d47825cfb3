"""Rebuilding the index from the tars themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gamut.errors import ShardError
from gamut.progress import Progress
from gamut.shards.build import Builder, Names, only_writer
from gamut.shards.kept import SCANS, Kept
from gamut.shards.labels import filled
from gamut.shards.part import Part, scan
from gamut.shards.pool import share_of, stream
from gamut.shards.statistics import describe, has_statistics
from gamut.shards.tars import Tars


def rebuild(tars: Tars, folder: Path, workers: int = 1) -> tuple[int, int]:
    """Write the index of tars made by `convert` into `folder`, which may be the folder of the tars. Returns the number
    of clips, and the number of shards of the conversion that are missing. Tars that `scan_share` has read, or a run
    that was killed, are not read again.

    Reads every byte: a tar that is cut off, or holds a clip whose audio is not what its KEY.json says, is refused
    rather than indexed as a shorter one. The class table is that of the conversion, or, where its record is gone, made
    from the clips' own labels. The set's statistics are made, too, unless those of the same shards are there. Raises
    ShardError, also where `folder` holds other tars.
    """
    place = tars.seen_from(folder)
    with only_writer(folder):
        seen: dict[int, str] = {}
        kept = _kept(tars, folder)
        kept.begin()
        with Builder(folder) as builder:
            for part in _scans(kept, tars.names, workers):
                _take_labels(folder, part, seen)
                builder.add(part)
            if not builder.rows.clips:
                raise ShardError(f"The tars in {tars.place} hold no clips.")
            conversion = _conversion(folder)
            classes = _class_table(seen, conversion)
            builder.publish(classes, {"source": "index"}, place, _names(conversion))
            clips = builder.rows.clips
        if not has_statistics(folder):
            describe(folder, workers, tars.remote)
        kept.remove()
        return clips, _absent(conversion, len(tars.names))


def scan_share(tars: Tars, folder: Path, number: int, of: int, workers: int = 1) -> None:
    """Read share `number` of `of` of the tars, for `rebuild` to gather; any number of shares at once. Raises ShardError
    as that."""
    tars.seen_from(folder)
    names = [tars.names[one] for one in share_of(len(tars.names), number, of)]
    with only_writer(folder, with_others=True):
        for _ in _scans(_kept(tars, folder), names, workers):
            pass


def _kept(tars: Tars, folder: Path) -> Kept[Part]:
    return Kept(tars, folder / "index" / SCANS, {"of": "convert"}, Part.dump, Part.parse)


def _scans(kept: Kept[Part], names: Sequence[str], workers: int) -> Iterator[Part]:
    with Progress("indexing", len(names), "shards") as progress:
        yield from stream(_scan, map(kept.only, names), len(names), workers, progress.add)


def _scan(kept: Kept[Part], advance: Callable[[int], None]) -> Part:
    (name,) = kept.tars.names
    stamp, part = kept.look(name)
    if part is None:
        with kept.tars.open(name) as file:
            try:
                part = scan(file, Path(kept.tars.full(name)))
            except ShardError as error:
                raise ShardError(
                    f"{error} Delete that tar, then run the conversion again, which writes it again, or index the "
                    "remaining tars."
                ) from error
        kept.keep(name, part, stamp)
    advance(1)
    return part


def _conversion(folder: Path) -> dict:
    """The record that `convert` left; empty where it was not copied along with the tars."""
    try:
        content = json.loads((folder / "index" / "convert.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _names(conversion: dict) -> Names:
    names = conversion.get("names")
    return names if isinstance(names, dict) else {}


def _absent(conversion: dict, tars: int) -> int:
    shards = conversion.get("shards")
    return max(0, shards - tars) if isinstance(shards, int) else 0


def _take_labels(folder: Path, part: Part, seen: dict[int, str]) -> None:
    for label, name in part.label_names.items():
        if seen.setdefault(label, name) != name:
            raise ShardError(f"Label {label} is both {seen[label]} and {name} in the tars in {folder}.")


def _class_table(seen: dict[int, str], conversion: dict) -> list[str]:
    table = conversion.get("labels", [])
    if seen.items() <= dict(enumerate(table)).items():
        return table
    return filled(seen)
