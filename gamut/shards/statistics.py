"""What is in a shard set: clips, hours, rates, lengths, classes, what batching wastes, the log-mel's mean and std."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import xxhash

from gamut.audio.logmel import RunningStatistics, log_mel
from gamut.errors import AudioError, ShardError
from gamut.files import write_bytes
from gamut.numbers import HOP, RATE, WINDOW
from gamut.progress import Progress
from gamut.remote import Remote
from gamut.shards.batching import Spending, spending
from gamut.shards.index import Index
from gamut.shards.pool import spread
from gamut.shards.tar import members
from gamut.shards.tars import Tars

EDGES = (0, 0.5, 1, 2, 5, 10, 20, 30, 60)  # seconds, of the length histogram; the last bin is open
RAREST = 10  # classes
LARGEST_JSON = 16 << 20  # bytes


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


def describe(folder: Path, workers: int = 1, remote: Remote | None = None) -> Statistics:
    """Read every clip; write index/statistics.json.

    Every frame counts alike (so a long clip more than a short one), no augmentation, no padding; float64. Raises
    ShardError at the first damaged clip.
    """
    index = Index.open(folder, remote=remote)
    if len(index) == 0:
        raise ShardError(f"There are no clips in {folder}.")
    shards = [_rows(index, number) for number in range(len(index.shards))]
    total, rates = RunningStatistics(), Counter[str]()
    with Progress("log-mel statistics", len(index)) as progress:
        each = functools.partial(_shard_statistics, folder)
        for one, shard_rates in spread(each, shards, workers, progress.add):  # in order: the same bits at any workers
            total.merge(one)
            rates.update(shard_rates)
    seconds = np.asarray(index.samples) / RATE
    count = np.bincount(index.label, minlength=len(index.labels))
    labels = {name: int(clips) for name, clips in zip(index.labels, count)}
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
        batching=spending(np.asarray(index.samples)),
        frames=total.count // 128,
        mean=total.mean,
        std=total.std,
    )
    write_bytes(folder / "index" / "statistics.json", json.dumps(asdict(statistics), indent=1).encode(), ShardError)
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


def _shard_statistics(
    folder: Path, shard: _Shard, advance: Callable[[int], None]
) -> tuple[RunningStatistics, Counter[str]]:
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
            rates = _source_rates(shard, file)
    except (AudioError, OSError) as error:
        raise ShardError(
            f"{shard.tars.full(shard.name)} cannot be described: {error} List what is damaged: "
            f"python -m gamut.shards verify {folder}"
        ) from error
    finally:
        torch.set_num_threads(threads)
    return statistics, rates


def _source_rates(shard: _Shard, file: BinaryIO) -> Counter[str]:
    """Sample rates of the files before they were converted, as the clips' KEY.json tell; `unknown` where none does."""
    rates, keys = Counter[str](), set(shard.keys)
    with contextlib.suppress(ShardError):  # a set may have been indexed up to where one of its tars is damaged
        for member in members(file, shard.tars.full(shard.name)):
            key = member.name.removesuffix(".json")
            if key in keys and member.name != key and member.size <= LARGEST_JSON:
                file.seek(member.offset)
                if (rate := _rate(file.read(member.size))) is not None:
                    rates[f"{rate:g} Hz"] += 1
                    keys.discard(key)
    if keys:
        rates["unknown"] += len(keys)
    return rates


def _rate(description: bytes) -> float | None:
    try:
        rate = json.loads(description)["provenance"]["rate"]
    except (ValueError, KeyError, TypeError):
        return None
    return rate if isinstance(rate, (int, float)) else None


def _histogram(seconds: np.ndarray) -> dict[str, int]:
    counts, _ = np.histogram(seconds, bins=[*EDGES, np.inf])
    names = [f"{low:g}-{high:g} s" for low, high in pairwise(EDGES)] + [f"{EDGES[-1]:g} s and more"]
    return {name: int(count) for name, count in zip(names, counts)}
