"""What is in a shard set: clips, hours, rates, lengths, classes, what batching wastes, the log-mel's mean and std."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gamut.errors import AudioError, ShardError
from gamut.files import with_digest, write_bytes
from gamut.numbers import RATE
from gamut.remote import Remote
from gamut.shards.batching import Spending, spending
from gamut.shards.doubles import Doubles, find_doubles
from gamut.shards.heard import COUNTED, UNKNOWN, Heard
from gamut.shards.index import Index
from gamut.shards.kept import Job, Kept, read_shards
from gamut.shards.pool import share_of
from gamut.shards.read import descriptions

EDGES = (0, 0.5, 1, 2, 5, 10, 20, 30, 60)  # seconds, of the length histogram; the last bin is open
RAREST = 10  # classes
WHAT = "log-mel statistics"
AT_ONCE = 1 << 22  # entries of a column


@dataclass(frozen=True)
class Statistics:
    """Goes into index/statistics.json as it is."""

    index: str  # fingerprint of the index that this describes
    clips: int
    hours: float
    shortest: float  # seconds
    median: float
    longest: float
    lengths: dict[str, int]  # "1-2 s" -> clips
    rates: dict[str, int]  # "44100 Hz", of the files that the clips were made from -> clips
    labels: dict[str, int]  # class -> clips
    rarest: dict[str, int]  # the ten classes with the fewest clips -> clips
    unlabelled: int  # clips
    batching: list[Spending]  # what each way of batching would spend on padding
    frames: int  # at 10 ms
    mean: float  # of the log-mel over all bins of all frames
    std: float
    strong: int = 0  # clips with events; those with labels alone are weakly labelled
    events: dict[str, int] = field(default_factory=dict)  # class -> events; empty where there are none
    silent: int = 0  # clips of which every sample is the same
    doubles: Doubles | None = None
    sources: dict[str, dict[str, int]] = field(default_factory=dict)  # "wav, 44100 Hz, by soundfile" -> COUNTED
    unusable: dict[str, dict[str, int]] = field(default_factory=dict)  # ".wav" -> reason -> files that were left out


def describe(
    folder: Path,
    workers: int = 1,
    remote: Remote | None = None,
    heard: Mapping[str, Heard] | None = None,
) -> Statistics:
    """Write index/statistics.json. Clips are read but for those of shards of which it is known what was `heard` when
    they were written or indexed (by the shard's name; each is asked for once): the same bits either way.

    Raises ShardError at the first damaged clip.
    """
    index = Index.open(folder, remote=remote)
    if len(index) == 0:
        raise ShardError(f"There are no clips in {folder}.")
    known = heard or {}
    names = [index.shards[number]["name"] for number in range(len(index.shards))]
    unread = [number for number, name in enumerate(names) if name not in known]
    left = {names[number] for number in unread}
    with tempfile.TemporaryFile(dir=folder / "index") as sounds:
        read = read_shards(index, unread, _hearing(folder), workers, WHAT)  # in order: the same bits at any workers
        total = _merged((next(read) if name in left else known[name] for name in names), sounds)
        checksums = np.memmap(sounds, np.uint64, "r", shape=(len(index),))
        statistics = _statistics(index, total, find_doubles(index, checksums))
    content = json.dumps(with_digest(asdict(statistics)), indent=1)
    write_bytes(folder / "index" / "statistics.json", content.encode(), ShardError)
    return statistics


def describe_in_shares(folder: Path, workers: int = 1, remote: Remote | None = None) -> Statistics:
    """`describe`, reading those shards that `hear_share` has not read: the same bits. Raises ShardError as that."""
    kept = _kept(Index.open(folder, remote=remote))
    statistics = describe(folder, workers, remote, kept)
    kept.remove()
    return statistics


def hear_share(folder: Path, number: int, of: int, workers: int = 1, remote: Remote | None = None) -> None:
    """Read share `number` of `of` of the shards, for `describe_in_shares`; any number of shares at once. Raises
    ShardError at the first damaged clip."""
    index = Index.open(folder, remote=remote)
    numbers = share_of(len(index.shards), number, of)
    for _ in read_shards(index, numbers, _hearing(folder), workers, WHAT, _kept(index)):
        pass


def _kept(index: Index) -> Kept[Heard]:
    return Kept.of_index(index, "heard", Heard.dump, Heard.parse)


def _hearing(folder: Path) -> Callable[[Job, Callable[[int], None]], Heard]:
    return functools.partial(_hear, folder, frozenset(_left(folder).get("saturated", ())))


def _merged(shards: Iterable[Heard], sounds: BinaryIO) -> Heard:
    """The shards as one; their clips' checksums go to the file, in the order of the index."""
    total, clips = Heard(), 0
    for one in shards:
        total.join(one)
        sounds.write(one.sounds.tobytes())
        clips += len(one.sounds)
    sounds.flush()
    if bare := clips - total.rates.total():
        total.rates[UNKNOWN] += bare
    return total


def _statistics(index: Index, heard: Heard, doubles: Doubles) -> Statistics:
    samples = np.asarray(index.samples)
    labels = dict(zip(index.labels, index.sums.label_totals(len(index.labels)).tolist()))
    middle = (kth(samples, (len(samples) - 1) // 2) / RATE, kth(samples, len(samples) // 2) / RATE)
    return Statistics(
        index=index.fingerprint,
        clips=len(index),
        hours=sum(int(some.sum()) for some in chunks(samples)) / RATE / 3600,
        shortest=int(samples.min()) / RATE,
        median=float(np.mean(middle)),
        longest=int(samples.max()) / RATE,
        lengths=_histogram(samples),
        rates=dict(heard.rates.most_common()),
        labels=labels,
        rarest=dict(sorted(labels.items(), key=lambda item: item[1])[:RAREST]),
        unlabelled=len(index) - _with_some(index.label_offset),
        strong=0 if index.event_offset is None else _with_some(index.event_offset),
        events=_counted(index, index.event) if len(index.event) else {},
        batching=spending(samples),
        frames=heard.frames.count // 128,
        mean=heard.frames.mean,
        std=heard.frames.std,
        silent=heard.silent,
        sources={source: {what: counts[what] for what in COUNTED} for source, counts in sorted(heard.sources.items())},
        unusable=_unusable(index.folder),
        doubles=doubles,
    )


def chunks(column: np.ndarray) -> Iterator[np.ndarray]:
    """A column some millions of entries at a time."""
    for first in range(0, len(column), AT_ONCE):
        yield column[first : first + AT_ONCE]


def kth(values: np.ndarray, k: int) -> int:
    """The k-th smallest, from 0, of int64 [n], k < n: by bisection, without a sorted copy.

    >>> kth(np.array([5, 3, 9]), 1)
    5
    """
    low, high = int(values.min()), int(values.max())
    while low < high:
        middle = (low + high) // 2
        if sum(int(np.count_nonzero(some <= middle)) for some in chunks(values)) > k:
            high = middle
        else:
            low = middle + 1
    return low


def has_statistics(folder: Path) -> bool:
    """Whether the set in `folder` has statistics of the shards that are there now."""
    try:
        return Index.open(folder, tars=False).statistics() is not None
    except ShardError:  # what is damaged is made again
        return False


def _counted(index: Index, ids: np.ndarray) -> dict[str, int]:
    """Class -> how often it is among these class ids."""
    counts = np.zeros(len(index.labels), np.int64)
    for some in chunks(ids):
        counts += np.bincount(some, minlength=len(counts))
    return dict(zip(index.labels, counts.tolist()))


def _with_some(offsets: np.ndarray) -> int:
    """How many of the stretches that these offsets mark are not empty."""
    return sum(
        int(np.count_nonzero(np.diff(offsets[first : first + AT_ONCE + 1])))
        for first in range(0, len(offsets) - 1, AT_ONCE)
    )


def _hear(folder: Path, clipped: Container[str], job: Job, advance: Callable[[int], None]) -> Heard:
    """A shard, read from its tar; clipped: TAR/KEY of what `index` found so in third-party tars."""
    heard, clip, clips = Heard(), 0, job[0]
    try:
        with clips.tars.open(clips.name) as file:
            for clip in range(len(clips.keys)):
                heard.add(clips.waveform(file, clip))
                advance(1)
            if clips.codecs:
                for clip, (key, codec) in enumerate(zip(clips.keys, clips.codecs)):
                    saturated = f"{clips.name}/{key}" in clipped
                    heard.add_member(clips.payload(file, clip), codec, saturated, int(clips.samples[clip]))
            else:
                with contextlib.suppress(ShardError):  # a damaged tar may have been indexed up to the damage
                    for _, content in descriptions(file, clips.tars.full(clips.name), frozenset(clips.keys)):
                        heard.add_described(content)
    except AudioError as error:
        raise ShardError(
            f"The clip {clips.keys[clip]} in {clips.tars.full(clips.name)} {error}. List everything that is damaged: "
            f"python -m gamut.shards verify {folder}"
        ) from error
    return heard


def _unusable(folder: Path) -> dict[str, dict[str, int]]:
    """Ending -> reason -> files that `convert` or `index` left out; nothing where that is not known."""
    found: dict[str, Counter[str]] = {}
    with contextlib.suppress(KeyError, TypeError):
        for one in _left(folder).get("files", ()):
            found.setdefault(os.path.splitext(one["file"])[1].lower(), Counter())[one["reason"]] += 1
    return {ending: dict(counts.most_common()) for ending, counts in sorted(found.items())}


def _left(folder: Path) -> dict[str, Any]:
    """What `convert` or `index` wrote of clips that it left out, or held to full scale."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / "index" / "quarantine.json").read_bytes())
        return content if isinstance(content, dict) else {}
    return {}


def _histogram(samples: np.ndarray) -> dict[str, int]:
    counts = np.zeros(len(EDGES), np.int64)
    for some in chunks(samples):
        counts += np.histogram(some / RATE, bins=[*EDGES, np.inf])[0]
    names = [f"{low:g}-{high:g} s" for low, high in pairwise(EDGES)] + [f"{EDGES[-1]:g} s and more"]
    return {name: int(count) for name, count in zip(names, counts)}
