"""One clip of a shard set: found by its key, read, plotted."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gamut.errors import AudioError, ShardError
from gamut.numbers import RATE
from gamut.remote import Remote
from gamut.shards.heard import clip_log_mel
from gamut.shards.index import Index
from gamut.shards.read import ShardClips

COMPARED = 100_000  # keys that are looked through at once, and that a mistyped one is compared with
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
    from gamut.shards.plot import clip_picture  # here: matplotlib, and others only read clips

    index = Index.open(folder, tars=False, remote=remote)
    row = find(index, key)
    waveform = clip_waveform(index, row)
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
    rows, named, first = [], [], 0
    for keys in index.keys_by(COMPARED):
        rows += [first + at for at, one in enumerate(keys) if one == key]
        ends = (first + at for at, one in enumerate(keys) if key.endswith(one))
        named += [row for row in ends if _with_shard(index, row) == key]
        first += len(keys)
    rows = rows or named
    if len(rows) == 1:
        return rows[0]
    if rows:
        some = ", ".join(_with_shard(index, row) for row in rows[:NEAREST])
        raise ShardError(f"{len(rows)} clips in {index.folder} have the key {key}. Choose one: {some}.")
    near = _nearest(index, key)
    hint = f"The nearest are: {', '.join(near)}." if near else "It has no key like it."
    raise ShardError(f"There is no clip {key} among the {len(index):,} in {index.folder}. {hint}")


def _nearest(index: Index, wanted: str) -> list[str]:
    """Up to three keys that contain the one wanted, or else the most similar among the first 100,000."""
    containing: list[str] = []
    for keys in index.keys_by(COMPARED):
        some = [key for key in keys if wanted and wanted.lower() in key.lower()]
        containing = sorted([*containing, *some], key=len)[:NEAREST]
    first = next(iter(index.keys_by(COMPARED)), [])
    return containing or difflib.get_close_matches(wanted, first, n=NEAREST, cutoff=0.3)


def _with_shard(index: Index, row: int) -> str:
    return f"{index.tars.names[int(index.shard[row])].removesuffix('.tar')}/{index.key(row)}"


def clip_waveform(index: Index, row: int) -> np.ndarray:
    """int16 [samples] at 16 kHz. Raises AudioError naming the clip where its bytes are damaged."""
    clips = ShardClips.of(index, int(index.shard[row]), [row])
    try:
        with index.tars.open(clips.name) as file:
            return clips.waveform(file, 0)
    except AudioError as error:
        raise AudioError(
            f"The clip {clips.keys[0]} in {index.tars.full(clips.name)} {error}. List everything that is damaged: "
            f"python -m gamut.shards verify {index.folder}",
            error.reason,
        ) from error
