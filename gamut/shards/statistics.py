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
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import xxhash

from gamut.audio.kinds import needs_ffmpeg
from gamut.audio.logmel import RunningStatistics, log_mel
from gamut.audio.members import read_by
from gamut.errors import AudioError, ShardError
from gamut.files import with_digest, write_bytes
from gamut.numbers import HOP, PATCH, RATE, WINDOW
from gamut.progress import Progress
from gamut.remote import Remote
from gamut.shards.batching import Spending, spending
from gamut.shards.doubles import Doubles, find_doubles
from gamut.shards.index import Index
from gamut.shards.pool import stream
from gamut.shards.read import ShardClips, descriptions
from gamut.threads import one_thread

EDGES = (0, 0.5, 1, 2, 5, 10, 20, 30, 60)  # seconds, of the length histogram; the last bin is open
COUNTED = ("clips", "clipped", "padded")  # clipped: with samples held to full scale; padded: under 16 frames
SHORT = (PATCH - 1) * HOP + WINDOW  # samples of 16 frames
READERS = {".hdf5": "h5py", ".h5": "h5py"}  # of conversions that did not record it
RAREST = 10  # classes
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


def describe(folder: Path, workers: int = 1, remote: Remote | None = None) -> Statistics:
    """Read every clip; write index/statistics.json.

    Every frame counts alike (so a long clip more than a short one), no augmentation, no padding; float64. Raises
    ShardError at the first damaged clip.
    """
    index = Index.open(folder, remote=remote)
    if len(index) == 0:
        raise ShardError(f"There are no clips in {folder}.")
    with tempfile.TemporaryFile(dir=folder / "index") as sounds:
        with Progress("log-mel statistics", len(index)) as progress:
            each = functools.partial(_shard_statistics, folder, frozenset(_left(folder).get("saturated", ())))
            shards = (ShardClips.of(index, number) for number in range(len(index.shards)))
            # In order: the same bits at any workers
            heard = _merged(stream(each, shards, len(index.shards), workers, progress.add), sounds)
        checksums = np.memmap(sounds, np.uint64, "r", shape=(len(index),))
        statistics = _statistics(index, heard, find_doubles(index, checksums))
    content = json.dumps(with_digest(asdict(statistics)), indent=1)
    write_bytes(folder / "index" / "statistics.json", content.encode(), ShardError)
    return statistics


@dataclass
class _Heard:
    """What the sound of all shards comes to."""

    frames: RunningStatistics = field(default_factory=RunningStatistics)
    rates: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    silent: int = 0


def _merged(shards: Iterable[_Shard], sounds: BinaryIO) -> _Heard:
    """The shards as one; their clips' checksums go to the file, in the order of the index."""
    heard = _Heard()
    for one in shards:
        heard.frames.merge(one.frames)
        heard.rates.update(one.rates)
        for source, counts in one.sources.items():
            heard.sources.setdefault(source, Counter()).update(counts)
        heard.silent += one.silent
        sounds.write(one.sounds.tobytes())
    sounds.flush()
    return heard


def _statistics(index: Index, heard: _Heard, doubles: Doubles) -> Statistics:
    samples = index.samples
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


def clip_log_mel(waveform: np.ndarray) -> torch.Tensor:
    """Log-mel [T, 128] of a whole clip, int16 [n]: T = 1 + (n - 400) // 160, one frame for n under 400."""
    samples = torch.from_numpy(np.pad(waveform, (0, max(0, WINDOW - len(waveform)))))
    frames = 1 + (len(samples) - WINDOW) // HOP
    offset, length = torch.tensor([0, len(samples)]), torch.tensor([len(waveform)])
    return log_mel(samples, offset, length, torch.tensor([HOP]), torch.tensor([frames]), (frames,))


class _Shard(NamedTuple):
    frames: RunningStatistics
    rates: Counter[str]
    sources: dict[str, Counter[str]]
    sounds: np.ndarray  # uint64 [clips], xxh3_64 of the samples
    silent: int


def _shard_statistics(
    folder: Path, clipped: Container[str], clips: ShardClips, advance: Callable[[int], None]
) -> _Shard:
    statistics, sounds, silent = RunningStatistics(), np.zeros(len(clips.keys), np.uint64), 0
    clip = 0
    try:
        with one_thread(), clips.tars.open(clips.name) as file:
            for clip in range(len(clips.keys)):
                waveform = clips.waveform(file, clip)
                sounds[clip] = xxhash.xxh3_64_intdigest(waveform.tobytes())
                silent += not waveform.any() or bool((waveform == waveform[0]).all())
                statistics.add(clip_log_mel(waveform))
                advance(1)
            rates, sources = _of_members(clips, file, clipped) if clips.codecs else _source_rates(clips, file)
    except AudioError as error:
        raise ShardError(
            f"The clip {clips.keys[clip]} in {clips.tars.full(clips.name)} {error}. List everything that is damaged: "
            f"python -m gamut.shards verify {folder}"
        ) from error
    return _Shard(statistics, rates, sources, sounds, silent)


def _source_rates(clips: ShardClips, file: BinaryIO) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Sample rates of the files before conversion, as each KEY.json records it, `unknown` for clips without that; and
    kind of file -> COUNTED."""
    rates, keys, sources = Counter[str](), set(clips.keys), dict[str, Counter[str]]()
    with contextlib.suppress(ShardError):  # a damaged tar may have been indexed up to the damage
        for key, content in descriptions(file, clips.tars.full(clips.name), keys):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                rates[f"{content['provenance']['rate']:g} Hz"] += 1
                keys.discard(key)
                short = content["samples"] < SHORT
                counts = {"clips": 1, "clipped": content["saturated"] > 0, "padded": short}
                sources.setdefault(_source(content["provenance"]), Counter()).update(counts)
    if keys:
        rates["unknown"] += len(keys)
    return rates, sources


def _of_members(
    clips: ShardClips, file: BinaryIO, clipped: Container[str]
) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """The same of third-party shards, as their members tell it; `clipped`: TAR/KEY of what `index` found so."""
    rates, sources = Counter[str](), dict[str, Counter[str]]()
    for clip, (key, codec) in enumerate(zip(clips.keys, clips.codecs)):
        rate, reader = read_by(clips.payload(file, clip))
        told = f"{rate} Hz" if rate else "unknown"
        rates[told] += 1
        counts = {"clips": 1, "clipped": f"{clips.name}/{key}" in clipped, "padded": int(clips.samples[clip] < SHORT)}
        sources.setdefault(f"{codec}, {told}, by {reader}", Counter()).update(counts)
    return rates, sources


def _source(provenance: Mapping[str, Any]) -> str:
    """What kind of file a clip was made from, and what read it."""
    ending = os.path.splitext(provenance["file"])[1].lower()
    reader = provenance.get("reader") or READERS.get(
        ending, "ffmpeg" if needs_ffmpeg(provenance["file"]) else "soundfile"
    )
    return f"{ending.removeprefix('.') or 'no ending'}, {provenance['rate']:g} Hz, by {reader}"


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
