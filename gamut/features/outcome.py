"""What an extraction says before it begins and when it is done."""

from __future__ import annotations

from collections import Counter

from gamut.features.cache import FeatureCache
from gamut.features.extract import Job
from gamut.numbers import RATE
from gamut.recipe.schema import Recipe

SHOWN = 5


def describe(job: Job) -> str:
    """What will be made, how large it is, and how long it takes on this device, by one clip tried."""
    about = job.about
    size = about.clips * about.record_bytes
    model, front = (", ".join(f"{name} {value}" for name, value in of.items()) for of in (about.model, about.front))
    cut = int((job.clips.samples > job.recipe.extract.seconds * RATE).sum())
    short = int((job.clips.samples < job.recipe.extract.seconds * RATE).sum())
    lines = [
        f"encoder: {model}",
        f"front end: {front}; {cut:,} clips are cut there, {short:,} are shorter and followed by silence",
        f"kept: {about.layers} layers x {about.steps} steps (of {about.pooling['steps']} each) x {about.dim}, "
        f"{about.dtype}: {about.record_bytes / 1e6:.3f} MB a clip",
        f"in all: {about.clips:,} clips, {size / 1e9:.2f} GB in {about.shards} shards; about "
        f"{_duration(about.clips * job.seconds)} of encoding on one {'GPU' if job.device.type == 'cuda' else 'CPU'}",
        f"cache: {job.folder}",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def print_extracted(cache: FeatureCache, recipe: Recipe) -> None:
    """What a person is told at the end."""
    info = cache.info
    print(
        f"features of {info.clips - info.holes:,} clips are in {info.folder}; storing them as {info.dtype} has cost "
        f"{max(info.error):.1e} of their size (rms, worst layer)"
    )
    if cache.holes:
        counted = ", ".join(f"{n:,} {why}" for why, n in Counter(hole.reason for hole in cache.holes).most_common())
        print(f"left out {info.holes:,} unusable clips: {counted}")
        for hole in cache.holes[:SHOWN]:
            print(f"  {hole.reason:11} {hole.key}")
        print(f"  all of them: {info.folder / 'cache.json'}")
    print(f"train a head on it: features={info.folder}")
