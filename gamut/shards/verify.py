"""Is every byte of a shard set still what was indexed? Every damage is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from gamut.audio.decode import decode_flac
from gamut.errors import AudioError, ShardError
from gamut.progress import Progress
from gamut.remote import Remote
from gamut.remote.fetch import Absent
from gamut.shards.index import Index
from gamut.shards.part import checksum_of, hexadecimal, scan
from gamut.shards.pool import spread
from gamut.shards.tar import members
from gamut.shards.tars import Tars

SHOWN = 5  # tars named in a sentence


@dataclass(frozen=True)
class Damage:
    """One thing that is not as the index says."""

    place: str  # a file, or shard/key
    what: str
    kind: str = "tar"  # index | tar | clip | other (whole in itself, but not what was indexed) | stray


@dataclass(frozen=True)
class _Shard:
    """A shard's rows of the index, for a process of its own."""

    tars: Tars
    name: str
    decode: Callable[[bytes, int], np.ndarray]
    size: int
    checksum: str
    keys: tuple[str, ...]
    offset: np.ndarray
    bytes: np.ndarray
    samples: np.ndarray
    clip_checksum: np.ndarray


def verify(folder: Path, workers: int = 1, remote: Remote | None = None) -> tuple[Index, list[Damage]]:
    """Check the index's own files, each tar's size and checksum, its number of clips, and every clip's checksum and
    decoding. Damages come in the order of the shards. Raises ShardError where there is no index to compare with."""
    index = Index.open(folder, tars=False, remote=remote)
    damages = _check_index(index)
    if damages:
        return index, damages  # nothing can be compared with a damaged index
    shards = [_rows(index, number) for number in range(len(index.shards))]
    with Progress("verifying", len(index)) as progress:
        for found in spread(_check_shard, shards, workers, progress.add):
            damages += found
    known = {shard["name"] for shard in index.shards}
    damages += [
        Damage(path.name, "is not in the index", "stray")
        for path in sorted(Path(index.tars.place).glob("*.tar"))
        if not index.tars.is_remote and path.name not in known
    ]
    return index, damages


def remedies(index: Index, damages: list[Damage]) -> list[str]:
    """What to do about damages, a sentence or two for each kind that there is."""
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
            f"delete, and run the conversion again, which writes what is missing: {anew}. Without its source, bring "
            "back a copy"
            if source
            else "bring back a whole copy"
        )
        sentences.append(
            f"{_some(broken)}: {mend}, or delete and index what is left: {again}. A run leaves damaged clips out, "
            "counts and lists them, and stops past loader.max_holes; it does not start while a tar is missing or of "
            "another size."
        )
    if other:
        mend = "delete it and run the conversion again" if source else "bring back the one that was"
        sentences.append(
            f"{_some(other)}: whole, but not what was indexed. If it is right, the index is older: {again}. If not, "
            f"{mend}."
        )
    if strays := [damage.place for damage in damages if damage.kind == "stray"]:
        sentences.append(f"{_some(strays)}: move away, or take into the index: {again}.")
    return sentences


def _tars(damages: list[Damage], kinds: tuple[str, ...]) -> list[str]:
    names = (damage.place.partition(".tar")[0] + ".tar" for damage in damages if damage.kind in kinds)
    return list(dict.fromkeys(names))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _source(folder: Path) -> str:
    """The converter that made the set, as `convert` noted it; empty where it did not."""
    try:
        return str(json.loads((folder / "index" / "convert.json").read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _check_index(index: Index) -> list[Damage]:
    damages = []
    for name, digest in index.digests.items():
        path = index.folder / "index" / f"{name}.npy"
        if xxhash.xxh3_64_hexdigest(path.read_bytes()) != digest:
            damages.append(
                Damage(
                    f"index/{path.name}",
                    f"is damaged; rebuild the index: python -m gamut.shards index {index.folder}",
                    "index",
                )
            )
    return damages


def _rows(index: Index, number: int) -> _Shard:
    rows = np.flatnonzero(index.shard == number)
    shard = index.shards[number]
    return _Shard(
        tars=index.tars,
        name=shard["name"],
        decode=index.decode,
        size=shard["size"],
        checksum=shard["checksum"],
        keys=tuple(index.key(int(row)) for row in rows),
        offset=index.offset[rows],
        bytes=index.size[rows],
        samples=index.samples[rows],
        clip_checksum=index.checksum[rows],
    )


def _check_shard(shard: _Shard, advance: Callable[[int], None]) -> list[Damage]:
    name = shard.name
    try:
        with shard.tars.open(name) as file:
            damages = _check_tar(shard, file)
            for clip, key in enumerate(shard.keys):
                what = _check_clip(shard, clip, file.fileno())
                if what:
                    damages.append(Damage(f"{name}/{key}", what, "clip"))
                advance(1)
            return damages
    except ShardError as error:
        if shard.tars.is_remote and not isinstance(error, Absent):
            raise  # it says nothing of the tar
        why = str(error).removeprefix(shard.tars.full(name)).strip().rstrip(".")
        return [Damage(name, f"{why}; its {len(shard.keys)} clips are missing")]


def _check_tar(shard: _Shard, file: BinaryIO) -> list[Damage]:
    name, damages = shard.name, []
    size = os.fstat(file.fileno()).st_size
    if size != shard.size:
        damages.append(Damage(name, f"has {size} bytes where the index knows {shard.size}"))
    if hexadecimal(checksum_of(file)) == shard.checksum:
        return damages
    try:
        clips = _clips(shard, file)
    except ShardError as error:
        return [*damages, Damage(name, f"fails its checksum: {error}")]
    if clips != len(shard.keys):
        return [*damages, Damage(name, f"holds {clips} clips where the index knows {len(shard.keys)}", "other")]
    return [*damages, Damage(name, "fails its checksum: bytes have changed since it was indexed", "other")]


def _clips(shard: _Shard, file: BinaryIO) -> int:
    """How many clips a tar holds. Raises ShardError where it is damaged."""
    path = shard.tars.full(shard.name)
    if shard.decode is decode_flac:
        return len(scan(file, Path(path)).key)
    there = {member.offset for member in members(file, path)}
    return sum(int(offset) in there for offset in shard.offset)


def _check_clip(shard: _Shard, clip: int, descriptor: int) -> str | None:
    wanted = int(shard.bytes[clip])
    payload = os.pread(descriptor, wanted, int(shard.offset[clip]))
    if len(payload) != wanted:
        return f"is cut off: {len(payload)} of its {wanted} bytes are there"
    if xxhash.xxh3_64_intdigest(payload) != int(shard.clip_checksum[clip]):
        return "fails its checksum"
    try:
        shard.decode(payload, int(shard.samples[clip]))
    except AudioError as error:
        return f"does not decode: {error}"
    return None
