"""Whether every byte of a shard set is still what was indexed; all damage is listed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gamut.audio.decode import decode_flac
from gamut.errors import AudioError, ShardError
from gamut.remote import Remote
from gamut.remote.fetch import Absent
from gamut.shards.columns import damaged_columns
from gamut.shards.index import Index
from gamut.shards.kept import Job, Kept, read_shards
from gamut.shards.part import checksum_of, hexadecimal, scan
from gamut.shards.pool import share_of
from gamut.shards.read import ShardClips
from gamut.shards.tar import members

SHOWN = 5  # tars named in a sentence


@dataclass(frozen=True)
class Damage:
    """One thing that is not as the index says."""

    place: str  # a file, or shard/key
    what: str
    kind: str = "tar"  # index | tar | clip | other (intact, but not what was indexed) | stray


def verify(
    folder: Path, workers: int = 1, remote: Remote | None = None, in_shares: bool = False
) -> tuple[Index, list[Damage]]:
    """Check the index's own files, each tar's size and checksum, its number of clips, and every clip's checksum and
    decoding. Damages come in the order of the shards. in_shares: those shards are read that `verify_share` has not
    read. Raises ShardError where there is no index to compare with."""
    index = Index.open(folder, tars=False, intact=False, remote=remote)
    damages = _check_index(index)
    if damages:
        return index, damages  # nothing can be compared with a damaged index
    kept = _kept(index) if in_shares else None
    for found in read_shards(index, range(len(index.shards)), _check_shard, workers, "verifying", kept):
        damages += found
    if kept is not None:
        kept.remove()
    known = set(index.tars.names)
    damages += [
        Damage(path.name, "is not in the index", "stray")
        for path in sorted(Path(index.tars.place).glob("*.tar"))
        if not index.tars.is_remote and path.name not in known
    ]
    return index, damages


def verify_share(folder: Path, number: int, of: int, workers: int = 1, remote: Remote | None = None) -> None:
    """Check share `number` of `of` of the shards, for `verify` to gather; any number of shares at once. Raises
    ShardError where the index cannot be used."""
    index = Index.open(folder, tars=False, remote=remote)
    for _ in read_shards(
        index, share_of(len(index.shards), number, of), _check_shard, workers, "verifying", _kept(index)
    ):
        pass


def _kept(index: Index) -> Kept[list[Damage]]:
    def dump(damages: list[Damage]) -> list[dict]:
        return [asdict(one) for one in damages]

    return Kept.of_index(index, "verified", dump, lambda content: [Damage(**one) for one in content])


def remedies(index: Index, damages: list[Damage]) -> list[str]:
    """What to do about damages: a sentence or two for each kind found."""
    folder = index.folder
    again = f"python -m gamut.shards index {index.tars.place}"
    again += "" if index.tars.inside(folder) else f" --out {folder}"
    if any(damage.kind == "index" for damage in damages):
        return [f"The index is damaged: {again}, then verify again."]
    broken = _tars(damages, ("tar", "clip"))
    other = [name for name in _tars(damages, ("other",)) if name not in broken]
    source, sentences = _source(folder), []
    if broken:
        anew = f"python -m gamut.shards convert {source} SRC {folder}"
        mend = (
            f"delete, and run the conversion again, which writes what is missing: {anew}. Without its source, restore "
            "a copy"
            if source
            else "restore an intact copy"
        )
        sentences.append(
            f"{_some(broken)}: {mend}, or delete and index the remaining tars: {again}. A run leaves damaged clips "
            "out, counts and lists them, and stops past loader.max_holes; it does not start while a tar is missing or "
            "has another size."
        )
    if other:
        mend = "delete it and run the conversion again" if source else "restore the original"
        sentences.append(
            f"{_some(other)}: intact, but not what was indexed. If it is right, the index is outdated: {again}. If "
            f"not, {mend}."
        )
    if strays := [damage.place for damage in damages if damage.kind == "stray"]:
        sentences.append(f"{_some(strays)}: move it elsewhere, or add it to the index: {again}.")
    return sentences


def _tars(damages: list[Damage], kinds: tuple[str, ...]) -> list[str]:
    names = (damage.place.partition(".tar")[0] + ".tar" for damage in damages if damage.kind in kinds)
    return list(dict.fromkeys(names))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _source(folder: Path) -> str:
    """The converter that made the set, as `convert` recorded it; empty where there is no record."""
    try:
        return str(json.loads((folder / "index" / "convert.json").read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _check_index(index: Index) -> list[Damage]:
    if index.by_ranges:
        for column in index.arrays.values():
            np.asarray(column)  # fetched, and checked then
        return []
    what = f"is damaged; rebuild the index: python -m gamut.shards index {index.folder}"
    return [Damage(f"index/{name}", what, "index") for name in damaged_columns(index.folder, index.pages)]


def _check_shard(job: Job, advance: Callable[[int], None]) -> list[Damage]:
    clips, shard = job
    name = clips.name
    try:
        with clips.tars.open(name) as file:
            damages = _check_tar(clips, shard, file)
            for clip, key in enumerate(clips.keys):
                try:
                    clips.waveform(file, clip)
                except AudioError as error:
                    damages.append(Damage(f"{name}/{key}", str(error), "clip"))
                advance(1)
            return damages
    except ShardError as error:
        if clips.tars.is_remote and not isinstance(error, Absent):
            raise  # the server failed, which says nothing about the tar
        why = str(error).removeprefix(clips.tars.full(name)).strip().rstrip(".")
        return [Damage(name, f"{why}; its {len(clips.keys)} clips are missing")]


def _check_tar(clips: ShardClips, shard: dict, file: BinaryIO) -> list[Damage]:
    name, damages = clips.name, []
    size = os.fstat(file.fileno()).st_size
    if size != shard["size"]:
        damages.append(Damage(name, f"has {size} bytes, but {shard['size']} in the index"))
    if hexadecimal(checksum_of(file)) == shard["checksum"]:
        return damages
    try:
        found = _count(clips, file)
    except ShardError as error:
        return [*damages, Damage(name, f"fails its checksum: {error}")]
    if found != len(clips.keys):
        return [*damages, Damage(name, f"holds {found} clips, but {len(clips.keys)} in the index", "other")]
    return [*damages, Damage(name, "fails its checksum: bytes have changed since it was indexed", "other")]


def _count(clips: ShardClips, file: BinaryIO) -> int:
    """How many clips a tar holds. Raises ShardError where it is damaged."""
    path = clips.tars.full(clips.name)
    if clips.decode is decode_flac:
        return len(scan(file, Path(path)).key)
    there = {member.offset for member in members(file, path)}
    return sum(int(offset) in there for offset in clips.offset)
