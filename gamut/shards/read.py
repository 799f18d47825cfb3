"""Clips read straight from their tars, a shard at a time: the audio, checked against the index, and KEY.json."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from gamut.errors import AudioError, ShardError
from gamut.shards.index import Index
from gamut.shards.tar import members
from gamut.shards.tars import Tars

LARGEST_JSON = 16 << 20  # bytes
Payload = bytes  # of a clip; `ShardClips.bytes` is a number


@dataclass(frozen=True)
class ShardClips:
    """Clips of one shard and what the index says of them, small enough to be sent to another process; k clips."""

    tars: Tars
    name: str  # of the shard
    decode: Callable[[bytes, int], np.ndarray]  # see `Index.decode`
    keys: tuple[str, ...]
    offset: np.ndarray  # int64 [k]
    bytes: np.ndarray  # int64 [k]
    samples: np.ndarray  # int64 [k]
    checksum: np.ndarray  # uint64 [k]
    codecs: tuple[str, ...]  # of third-party shards; empty for ours

    @classmethod
    def of(cls, index: Index, shard: int, rows: Sequence[int] | None = None) -> ShardClips:
        """The clips of a shard number, or only those `rows` of the index, which must belong to it."""
        some = np.asarray(index.rows_of(shard) if rows is None else rows, np.int64)
        return cls(
            tars=index.tars.only(shard),
            name=index.tars.names[shard],
            decode=index.decode,
            keys=tuple(index.key(row) for row in some.tolist()),
            offset=index.offset[some],
            bytes=index.size[some],
            samples=index.samples[some],
            checksum=index.checksum[some],
            codecs=() if index.codec is None else tuple(index.codecs[codec] for codec in index.codec[some].tolist()),
        )

    def waveform(self, file: BinaryIO, clip: int) -> np.ndarray:
        """int16 [samples], 16 kHz: clip 0 to k - 1, from the opened tar. Raises AudioError as `payload`."""
        payload = self.payload(file, clip)
        try:
            return self.decode(payload, int(self.samples[clip]))
        except AudioError as error:
            raise AudioError(f"does not decode: {error}", error.reason) from error

    def payload(self, file: BinaryIO, clip: int) -> Payload:
        """The bytes of clip 0 to k - 1, from the opened tar.

        Raises AudioError with what is wrong, to be read after the clip's name: `fails its checksum`.
        """
        expected = int(self.bytes[clip])
        payload = os.pread(file.fileno(), expected, int(self.offset[clip]))
        if len(payload) != expected:
            raise AudioError(f"is cut off: {len(payload)} of its {expected} bytes are there", "truncated")
        if xxhash.xxh3_64_intdigest(payload) != int(self.checksum[clip]):
            raise AudioError("fails its checksum", "checksum")
        return payload


def descriptions(file: BinaryIO, path: str | Path, keys: Container[str]) -> Iterator[tuple[str, Any]]:
    """(key, content) of each KEY.json of these clips in a tar, in its order; None if too large or not JSON.

    Raises ShardError where the tar is damaged (see `members`).
    """
    for member in members(file, path):
        key = member.name.removesuffix(".json")
        if key == member.name or key not in keys:
            continue
        content = None
        if member.size <= LARGEST_JSON:
            file.seek(member.offset)
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(file.read(member.size))
        yield key, content


def texts(index: Index, rows: Sequence[int] | np.ndarray) -> list[str]:
    """The transcripts (`text` in KEY.json) of clips by their rows in the index; "" for a clip without one.

    Reads through each tar that holds one of them once. Raises ShardError where a tar or a KEY.json is damaged.
    """
    wanted: dict[int, dict[str, list[int]]] = {}
    for place, row in enumerate(np.asarray(rows, np.int64).tolist()):
        wanted.setdefault(int(index.shard[row]), {}).setdefault(index.key(row), []).append(place)
    found = [""] * len(rows)
    for shard, places in sorted(wanted.items()):
        name = index.shards[shard]["name"]
        path = index.tars.full(name)
        with index.tars.open(name) as file:
            for key, content in descriptions(file, path, places):
                if not isinstance(content, dict):
                    raise ShardError(
                        f"{key}.json in {path} is damaged: it is not a JSON object. List everything that is damaged: "
                        f"python -m gamut.shards verify {index.folder}"
                    )
                text = content.get("text")
                for place in places[key]:
                    found[place] = text if isinstance(text, str) else ""
    return found
