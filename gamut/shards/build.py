"""From the parts of all shards to the index beside them: flat arrays and index.json, each replaced atomically."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gamut.errors import ShardError
from gamut.files import lock, refusal, with_digest, write_bytes
from gamut.shards.part import Part, hexadecimal

FORMAT = 1
Names = Mapping[str, Mapping[str, Sequence[int]]]  # column -> name -> the values that it stands for

COLUMN = "column-"  # prefix of the files of a set's own columns


@contextlib.contextmanager
def only_writer(folder: Path, *, with_others: bool = False) -> Iterator[None]:
    """Hold the lock of the shard set in `folder`, which is made if need be; it ends with this process in any case.

    `with_others`: share the lock with the other jobs of one conversion, each of which writes shards of its own.

    Raises ShardError where another process holds the lock, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            (folder / "index" / "parts").mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(folder / "index" / "lock", wait=False, shared=with_others))
        except OSError as error:
            raise ShardError(refusal(error, folder)) from error
        if not held:
            raise ShardError(f"Another process is writing shards into {folder}. Wait for it to end.")
        yield


def clip_id(name: str, shard: str, key: str) -> int:
    """64-bit hash of (set, shard, key): stable under reordering, and different for a key that shards share."""
    return xxhash.xxh3_64_intdigest(f"{name}/{shard.removesuffix('.tar')}/{key}".encode())


def build(
    folder: Path,
    name: str,
    labels: Sequence[str],
    parts: Sequence[Part],
    about: dict | None = None,
    place: str | None = None,
    names: Names | None = None,
) -> None:
    """Write the index of a shard set into `folder`. `about` is kept in index.json as it is; `place` is where the tars
    are if not in `folder` itself; `names` are those of values in the set's own columns.

    index.json is removed first and written last, so a kill leaves a set without an index, never with a mixed one.
    Raises ShardError where the parts do not make one set.
    """
    columns = list(next((part.columns for part in parts if part.key), {}))
    for part in parts:
        if part.key and (part.name, set(part.columns)) != (name, set(columns)):
            raise ShardError(
                f"{folder / part.shard} belongs to another set than the shards beside it: its name and columns are "
                f"{part.name} {sorted(part.columns)}, theirs {name} {sorted(columns)}."
            )
    codecs = sorted({codec for part in parts for codec in part.codec})
    arrays = _arrays(name, columns, parts)
    if codecs:
        arrays["codec"] = np.array([codecs.index(codec) for part in parts for codec in part.codec], np.uint8)
    arrays |= _event_arrays(parts)
    if len(arrays["label"]) and int(arrays["label"].max()) >= len(labels):
        raise ShardError(f"A clip in {folder} has label {arrays['label'].max()}, but there are {len(labels)} classes.")
    _refuse_equal_ids(folder, arrays["clip_id"], [key for part in parts for key in part.key])
    index = folder / "index"
    index.mkdir(parents=True, exist_ok=True)
    (index / "index.json").unlink(missing_ok=True)
    for old in index.glob("*.npy"):
        old.unlink()
    digests = {}
    for array, values in arrays.items():
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        write_bytes(index / f"{array}.npy", file.getvalue(), ShardError)
        digests[array] = xxhash.xxh3_64_hexdigest(file.getvalue())
    content = {
        "format": FORMAT,
        "name": name,
        "labels": list(labels),
        "columns": columns,
        "names": {column: values for column, values in (names or {}).items() if column in columns},
        "clips": len(arrays["clip_id"]),
        "shards": [
            {"name": p.shard, "size": p.size, "clips": len(p.key), "checksum": hexadecimal(p.checksum)} for p in parts
        ],
        "arrays": digests,
        "about": about or {},
    }
    if codecs:
        content["codecs"] = codecs
    if place is not None:
        content["place"] = place
    content["fingerprint"] = fingerprint(content)
    write_bytes(index / "index.json", json.dumps(with_digest(content), indent=1).encode(), ShardError)


def fingerprint(content: Mapping[str, Any]) -> str:
    """Of what an index.json says of the set: its tars, classes and arrays by their checksums."""
    identity = json.dumps([content[field] for field in ("format", "name", "labels", "shards", "arrays")])
    return xxhash.xxh3_128_hexdigest(identity.encode())


def _arrays(name: str, columns: Sequence[str], parts: Sequence[Part]) -> dict[str, np.ndarray]:
    keys = [key.encode() for part in parts for key in part.key]
    labels = [labels for part in parts for labels in part.labels]
    arrays: dict[str, np.ndarray] = {
        "clip_id": np.array([clip_id(name, part.shard, key) for part in parts for key in part.key], np.uint64),
        "shard": np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.key) for part in parts]),
        "offset": np.array([offset for part in parts for offset in part.offset], np.int64),
        "size": np.array([size for part in parts for size in part.bytes], np.int64),
        "samples": np.array([samples for part in parts for samples in part.samples], np.int64),
        "checksum": np.array([checksum for part in parts for checksum in part.clip_checksum], np.uint64),
        "label_offset": _offsets([len(ids) for ids in labels]),
        "label": np.array([label for ids in labels for label in ids], np.int32),
        "key_offset": _offsets([len(key) for key in keys]),
        "key": np.frombuffer(b"".join(keys), np.uint8),
    }
    for column in columns:
        values = [value for part in parts if part.key for value in part.columns[column]]
        arrays[COLUMN + column] = np.array(values, np.int64)
    return arrays


def _event_arrays(parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """Of the clips' events; nothing where no clip has any, so that a set without events is what it always was."""
    clips = [events for part in parts for events in (part.events or [[]] * len(part.key))]
    events = np.array([event for events in clips for event in events], np.int64).reshape(-1, 3)
    if not len(events):
        return {}
    return {
        "event_offset": _offsets([len(events) for events in clips]),
        "event_onset": events[:, 0],
        "event_end": events[:, 1],
        "event": events[:, 2].astype(np.int32),
    }


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _refuse_equal_ids(folder: Path, ids: np.ndarray, keys: Sequence[str]) -> None:
    unique, count = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        twice = np.flatnonzero(ids == unique[count.argmax()])
        raise ShardError(
            f"Two clips in {folder} have the same clip id: {keys[twice[0]]} and {keys[twice[1]]}. "
            "Convert with another --name."
        )
