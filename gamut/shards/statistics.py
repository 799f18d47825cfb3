"""What is in a shard set: clips, hours, lengths, classes, and the mean and standard deviation of the log-mel."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import xxhash

from gamut.audio.decode import RATE
from gamut.audio.logmel import WINDOW, RunningStatistics, log_mel
from gamut.errors import AudioError, ShardError
from gamut.shards.durable import write_bytes
from gamut.shards.index import Index
from gamut.shards.pool import spread
from gamut.shards.progress import Progress
from gamut.shards.tars import Tars

HOP = 160  # samples, 10 ms
EDGES = (0, 0.5, 1, 2, 5, 10, 20, 30, 60)  # seconds, of the length histogram; the last bin is open


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
    labels: dict[str, int]  # class -> clips
    frames: int  # at 10 ms
    mean: float  # of the log-mel over all bins of all frames
    std: float


@dataclass(frozen=True)
class _Shard:
    tars: Tars
    name: str
    decode: Callable[[bytes, int], np.ndarray]
    keys: tuple[str, ...]
    offset: np.ndarray
    bytes: np.ndarray
    samples: np.ndarray
    checksum: np.ndarray


def describe(folder: Path, workers: int = 1) -> Statistics:
    """Read every clip and write index/statistics.json. Raises ShardError at the first damaged clip.

    Every frame counts alike (so a long clip more than a short one), no augmentation, no padding; float64.
    """
    index = Index.open(folder)
    if len(index) == 0:
        raise ShardError(f"There are no clips in {folder}.")
    shards = [_rows(index, number) for number in range(len(index.shards))]
    total = RunningStatistics()
    with Progress("log-mel statistics", len(index)) as progress:
        for one in spread(
            functools.partial(_shard_statistics, folder), shards, workers, progress.add
        ):  # in order: the same bits at any workers
            total.merge(one)
    seconds = np.asarray(index.samples) / RATE
    count = np.bincount(index.label, minlength=len(index.labels))
    statistics = Statistics(
        index=index.fingerprint,
        clips=len(index),
        hours=float(seconds.sum() / 3600),
        shortest=float(seconds.min()),
        median=float(np.median(seconds)),
        longest=float(seconds.max()),
        lengths=_histogram(seconds),
        labels={name: int(clips) for name, clips in zip(index.labels, count)},
        frames=total.count // 128,
        mean=total.mean,
        std=total.std,
    )
    write_bytes(folder / "index" / "statistics.json", json.dumps(asdict(statistics), indent=1).encode())
    return statistics


def clip_log_mel(waveform: np.ndarray) -> torch.Tensor:
    """Log-mel [T, 128] of a whole clip, int16 [n]: T = 1 + (n - 400) // 160, one frame for n under 400."""
    samples = torch.from_numpy(np.pad(waveform, (0, max(0, WINDOW - len(waveform)))))
    frames = 1 + (len(samples) - WINDOW) // HOP
    offset, length = torch.tensor([0, len(samples)]), torch.tensor([len(waveform)])
    return log_mel(samples, offset, length, torch.tensor([HOP]), torch.tensor([frames]), (frames,))


def _rows(index: Index, number: int) -> _Shard:
    rows = np.flatnonzero(index.shard == number)
    keys = tuple(index.key(int(row)) for row in rows)
    return _Shard(
        tars=index.tars,
        name=index.shards[number]["name"],
        decode=index.decode,
        keys=keys,
        offset=index.offset[rows],
        bytes=index.size[rows],
        samples=index.samples[rows],
        checksum=index.checksum[rows],
    )


def _shard_statistics(folder: Path, shard: _Shard, advance: Callable[[int], None]) -> RunningStatistics:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processes share the cores
    statistics = RunningStatistics()
    try:
        with shard.tars.open(shard.name) as file:
            for clip, key in enumerate(shard.keys):
                payload = os.pread(file.fileno(), int(shard.bytes[clip]), int(shard.offset[clip]))
                if xxhash.xxh3_64_intdigest(payload) != int(shard.checksum[clip]):
                    raise AudioError(f"{key} in {shard.name} is not as it was indexed.", "checksum")
                statistics.add(clip_log_mel(shard.decode(payload, int(shard.samples[clip]))))
                advance(1)
    except (AudioError, OSError) as error:
        raise ShardError(
            f"{shard.tars.full(shard.name)} cannot be described: {error} List what is damaged: "
            f"python -m gamut.shards verify {folder}"
        ) from error
    finally:
        torch.set_num_threads(threads)
    return statistics


def _histogram(seconds: np.ndarray) -> dict[str, int]:
    counts, _ = np.histogram(seconds, bins=[*EDGES, np.inf])
    names = [f"{low:g}-{high:g} s" for low, high in pairwise(EDGES)] + [f"{EDGES[-1]:g} s and more"]
    return {name: int(count) for name, count in zip(names, counts)}
