"""What is in a shard set: clips, hours, rates, lengths, classes, what batching wastes, the log-mel's mean and std."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Container, Mapping
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
from gamut.shards.pool import spread
from gamut.shards.read import ShardClips, descriptions
from gamut.threads import one_thread

EDGES = (0, 0.5, 1, 2, 5, 10, 20, 30, 60)  # seconds, of the length histogram; the last bin is open
COUNTED = ("clips", "clipped", "padded")  # clipped: with samples held to full scale; padded: under 16 frames
SHORT = (PATCH - 1) * HOP + WINDOW  # samples of 16 frames
READERS = {".hdf5": "h5py", ".h5": "h5py"}  # of conversions that did not record it
RAREST = 10  # classes


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
    shards = [ShardClips.of(index, number) for number in range(len(index.shards))]
    total, rates, silent = RunningStatistics(), Counter[str](), 0
    sources: dict[str, Counter[str]] = {}
    sounds: list[np.ndarray] = []  # in the order of the index, whose rows are in that of the shards
    with Progress("log-mel statistics", len(index)) as progress:
        each = functools.partial(_shard_statistics, folder, frozenset(_left(folder).get("saturated", ())))
        for one in spread(each, shards, workers, progress.add):  # in order: the same bits at any workers
            total.merge(one.frames)
            rates.update(one.rates)
            for source, counts in one.sources.items():
                sources.setdefault(source, Counter()).update(counts)
            silent += one.silent
            sounds.append(one.sounds)
    seconds = np.asarray(index.samples) / RATE
    labels = _counted(index, index.label)
    statistics = Statistics(
        index=index.fingerprint,
        clips=len(index),
        hours=float(seconds.sum() / 3600),
        shortest=float(seconds.min()),
        median=float(np.median(seconds)),
        longest=float(seconds.max()),
        lengths=_histogram(seconds),
        rates=dict(rates.most_common()),
        labels=labels,
        rarest=dict(sorted(labels.items(), key=lambda item: item[1])[:RAREST]),
        unlabelled=int(np.count_nonzero(np.diff(index.label_offset) == 0)),
        strong=0 if index.event_offset is None else int(np.count_nonzero(np.diff(index.event_offset))),
        events=_counted(index, index.event) if len(index.event) else {},
        batching=spending(np.asarray(index.samples)),
        frames=total.count // 128,
        mean=total.mean,
        std=total.std,
        silent=silent,
        sources={source: {what: counts[what] for what in COUNTED} for source, counts in sorted(sources.items())},
        unusable=_unusable(folder),
        doubles=find_doubles(index, np.concatenate(sounds)),
    )
    content = json.dumps(with_digest(asdict(statistics)), indent=1)
    write_bytes(folder / "index" / "statistics.json", content.encode(), ShardError)
    return statistics


def _counted(index: Index, ids: np.ndarray) -> dict[str, int]:
    """Class -> how often it is among these class ids."""
    return dict(zip(index.labels, np.bincount(ids, minlength=len(index.labels)).tolist()))


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


def _histogram(seconds: np.ndarray) -> dict[str, int]:
    counts, _ = np.histogram(seconds, bins=[*EDGES, np.inf])
    names = [f"{low:g}-{high:g} s" for low, high in pairwise(EDGES)] + [f"{EDGES[-1]:g} s and more"]
    return {name: int(count) for name, count in zip(names, counts)}
