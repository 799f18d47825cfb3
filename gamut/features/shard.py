"""The files of a cache: safetensors, one tensor x [n, layers, steps, dim], a checksum a record.

The header is padded with spaces to a multiple of 4,096 bytes, so that record k lies at header + k * record bytes and is
one positional read. Its metadata hold the cache's fingerprint, the clips' ids and checksums and the sums of the storing
error (64 bits each, little endian, base64), and the holes. A clip that could not be encoded has no record.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gamut.data.batch import Hole
from gamut.errors import FeatureError
from gamut.features.about import About
from gamut.features.precision import SAFETENSORS, Error
from gamut.files import replacing

ALIGN = 4096  # bytes
LARGEST_HEADER = 1 << 24
FILES = 128  # open at a time, a thread
TRIES, PAUSE = 5, 0.1  # of a read that fails; seconds before the second try, doubling


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    size: int  # bytes before the first record
    number: int  # of the shard
    clip_id: np.ndarray  # uint64 [n]
    checksum: np.ndarray  # uint64 [n]
    holes: tuple[Hole, ...]
    error: Error


def shard_name(number: int) -> str:
    return f"{number:06d}.safetensors"


def checksum(about: About, clip_id: int, record: Any) -> int:
    """Of a record's bytes; `record` is anything with a buffer."""
    return xxhash.xxh3_64_intdigest(record, about.seed(clip_id))


def write_shard(
    path: Path,
    about: About,
    number: int,
    stored: np.ndarray,
    clip_id: Sequence[int] | np.ndarray,
    holes: Sequence[Hole],
    error: Error,
) -> None:
    """Write records [n, *about.stored] to a temporary name, sync, rename. Raises ShardError where the disk is full."""
    stored = np.ascontiguousarray(stored)
    sums = [checksum(about, int(clip), record.data.cast("B")) for clip, record in zip(clip_id, stored)]
    metadata = {
        "fingerprint": about.fingerprint,
        "shard": str(number),
        "clip_id": _text(np.asarray(clip_id, "<u8")),
        "checksum": _text(np.array(sums, "<u8")),
        "holes": json.dumps([[hole.row, hole.key, hole.reason] for hole in holes]),
        "error": _text(np.stack([error.squares, error.differences]).astype("<f8")),
    }
    tensor = {"dtype": SAFETENSORS[about.dtype], "shape": list(stored.shape), "data_offsets": [0, stored.nbytes]}
    text = json.dumps({"__metadata__": metadata, "x": tensor}, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // ALIGN) * ALIGN - 8
    with replacing(path, FeatureError) as file:
        file.write(length.to_bytes(8, "little") + text.ljust(length))
        file.write(stored.data.cast("B") if stored.size else b"")


def read_header(path: Path, about: About, number: int) -> Header:
    """The header of shard `number`, checked against the file's size and against `about`.

    Raises FeatureError where it is not a whole shard of this cache, OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= LARGEST_HEADER else b""
        size = file.seek(0, 2)
    try:
        content = json.loads(text)
        metadata, tensor = content["__metadata__"], content["x"]
        if metadata["fingerprint"] != about.fingerprint or metadata["shard"] != str(number):
            raise ValueError(f"it is shard {metadata['shard']} of the cache {metadata['fingerprint']}")
        squares, differences = _numbers(metadata["error"], "<f8").reshape(2, about.layers)
        header = Header(
            size=8 + length,
            number=number,
            clip_id=_numbers(metadata["clip_id"]),
            checksum=_numbers(metadata["checksum"]),
            holes=tuple(Hole(int(row), str(key), str(reason)) for row, key, reason in json.loads(metadata["holes"])),
            error=Error(squares, differences),
        )
        n = len(header.clip_id)
        if tensor["dtype"] != SAFETENSORS[about.dtype] or tuple(tensor["shape"]) != (n, *about.stored):
            raise ValueError(f"it holds {tensor['dtype']} {tensor['shape']}")
        if len(header.checksum) != n or n + len(header.holes) != len(about.clips_of(number)):
            raise ValueError(f"it has {n} records and {len(header.holes)} holes")
        if size != header.size + n * about.record_bytes:
            raise ValueError(f"it has {size} bytes of {header.size + n * about.record_bytes}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatureError(f"{path} is not a whole shard of its cache ({error}).") from error
    return header


class _Open(OrderedDict[int, tuple[int, int]]):
    """Number of a shard -> (descriptor, header bytes), the most recently used last. Closed when its thread ends."""

    def __del__(self) -> None:
        for descriptor, _ in self.values():
            os.close(descriptor)


class Files(threading.local):
    """The shards of a cache, open for positional reads, by descriptors of a thread's or a forked process's own.

    records int64 [shards]: how many each shard has, of `record_bytes` each. Where they begin follows from the file's
    size: opening one costs no read, which counts on a file system that is far away. What they hold is for the reader's
    checksum to say.
    """

    def __init__(self, folder: Path, records: np.ndarray, record_bytes: int) -> None:
        self._folder = folder
        self._records = records
        self._record_bytes = record_bytes
        self._open = _Open()

    def read(self, view: memoryview, shard: int, slot: int) -> int:
        """Fill `view` with the record in `slot` of a shard; the bytes read, fewer where the file ends.

        Raises OSError where the file cannot be read (it is tried again, unless the file is missing), FeatureError
        where it has not the size of its records.
        """
        for attempt in range(TRIES):
            try:
                descriptor, header = self._file(shard)
                return _read_into(descriptor, view, header + slot * len(view))
            except OSError as error:
                self.close(shard)
                if isinstance(error, FileNotFoundError) or attempt + 1 == TRIES:
                    raise
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _file(self, shard: int) -> tuple[int, int]:
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        while len(self._open) >= FILES:
            self.close(next(iter(self._open)))
        descriptor = os.open(self._folder / shard_name(shard), os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(descriptor).st_size
        header = size - int(self._records[shard]) * self._record_bytes
        if header < ALIGN or header % ALIGN:
            os.close(descriptor)
            raise FeatureError(f"it has {size} bytes, which its {self._records[shard]} records do not make")
        self._open[shard] = (descriptor, header)
        return self._open[shard]

    def close(self, shard: int) -> None:
        """Close a shard; the next read of it opens the file that then has its name."""
        found = self._open.pop(shard, None)
        if found is not None:
            os.close(found[0])


def _read_into(descriptor: int, view: memoryview, at: int) -> int:
    done = 0
    while done < len(view):
        read = os.preadv(descriptor, [view[done:]], at + done)
        if not read:
            break
        done += read
    return done


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _numbers(text: str, dtype: str = "<u8") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)
