"""One clip of a shard set: found by its key, read, plotted."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from gamut.errors import AudioError, ShardError
from gamut.numbers import RATE
from gamut.remote import Remote
from gamut.shards.index import Index
from gamut.shards.plot import clip_picture
from gamut.shards.statistics import clip_log_mel

COMPARED = 100_000  # keys among which the nearest is looked for
NEAREST = 3


@dataclass(frozen=True)
class Shown:
    """A clip and where its picture went."""

    key: str
    shard: str
    seconds: float
    labels: tuple[str, ...]
    peak: float  # of full scale
    level: float  # root mean square, dB below full scale
    columns: dict[str, int]
    picture: Path


def show(folder: Path, key: str, out: Path | None = None, remote: Remote | None = None) -> Shown:
    """Plot the waveform and log-mel of the clip `key` (or SHARD/KEY, where shards share a key) as a PNG.

    It goes to `out`, or into the working folder under the key's name. Raises ShardError where there is no such clip
    (naming the nearest keys) or several, AudioError where its bytes are damaged.
    """
    index = Index.open(folder, tars=False, remote=remote)
    row = find(index, key)
    waveform = _read(index, row)
    labels = tuple(index.labels[label] for label in index.label_ids(row))
    log_mel = clip_log_mel(waveform).numpy()
    seconds = len(waveform) / RATE
    named = ", ".join(labels) or "no label"
    name = index.key(row)
    figure = clip_picture(waveform, log_mel, f"{name}\n{named}; {seconds:.2f} s, from {index.name}")
    out = out or Path(f"{name.replace('/', '-')}.png")
    try:
        figure.savefig(out, format="png", dpi=110)
    except OSError as error:
        raise ShardError(
            f"{out} cannot be written: {error.strerror or error}. Give another file with --out."
        ) from error
    samples = waveform / 32768
    level = float(np.sqrt(np.mean(samples**2)))
    return Shown(
        key=name,
        shard=index.shards[int(index.shard[row])]["name"],
        seconds=seconds,
        labels=labels,
        peak=float(np.abs(samples).max()),
        level=float(20 * np.log10(max(level, 1e-10))),
        columns={column: int(values[row]) for column, values in index.columns.items()},
        picture=out,
    )


def find(index: Index, key: str) -> int:
    """The row of a clip by its key, or by SHARD/KEY. Raises ShardError where there is none, or more than one."""
    rows = [row for row in range(len(index)) if index.key(row) == key]
    if not rows:
        rows = [row for row in range(len(index)) if _with_shard(index, row) == key]
    if len(rows) == 1:
        return rows[0]
    if rows:
        some = ", ".join(_with_shard(index, row) for row in rows[:NEAREST])
        raise ShardError(f"{len(rows)} clips in {index.folder} have the key {key}. Say which: {some}.")
    near = nearest(index, key)
    hint = f"The nearest are: {', '.join(near)}." if near else "It has no key like it."
    raise ShardError(f"There is no clip {key} among the {len(index):,} in {index.folder}. {hint}")


def nearest(index: Index, key: str) -> list[str]:
    """Up to three keys that are most like this one; of a large set those that hold it, or of the first 100,000."""
    holding = sorted(_holding(index, key), key=len)[:NEAREST]
    if holding:
        return holding
    some = [index.key(row) for row in range(min(len(index), COMPARED))]
    return difflib.get_close_matches(key, some, n=NEAREST, cutoff=0.3)


def _holding(index: Index, part: str) -> Iterator[str]:
    return (key for key in (index.key(row) for row in range(len(index))) if part and part.lower() in key.lower())


def _with_shard(index: Index, row: int) -> str:
    return f"{index.shards[int(index.shard[row])]['name'].removesuffix('.tar')}/{index.key(row)}"


def _read(index: Index, row: int) -> np.ndarray:
    name, key = index.shards[int(index.shard[row])]["name"], index.key(row)
    with index.tars.open(name) as file:
        file.seek(int(index.offset[row]))
        payload = file.read(int(index.size[row]))
    if xxhash.xxh3_64_intdigest(payload) != int(index.checksum[row]):
        raise AudioError(
            f"Clip {key} in {index.tars.full(name)} is not as it was indexed. List all that is damaged: "
            f"python -m gamut.shards verify {index.folder}",
            "checksum",
        )
    return index.decode(payload, int(index.samples[row]))
