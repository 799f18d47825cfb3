"""A head's epoch from a cache of features, against encoding the clips again each time.

    python bench/caching.py asit_esc50 init=runs/asit_b data=shards/esc50 --cache features/asit_esc50

Takes the encoder and clips of an extraction recipe, and the finished cache of them. In turn, one process, one thread:
every clip read, decoded and encoded as the extraction does it, and every clip's record read by the loader that trains a
head. Medians of CPU seconds, so that other work on the machine disturbs them less; what the head itself costs comes on
top of both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.data.loader import Loader
from gamut.features import FeatureCache
from gamut.features.extract import encode, prepare
from gamut.plan import Policy, plan_evaluation
from gamut.recipe.load import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of the extraction")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    job, cache = prepare(load_recipe("features", options.recipe, options.overrides)), FeatureCache(options.cache)
    if cache.info.fingerprint != job.about.fingerprint:
        raise SystemExit(f"{cache.folder} is not the cache of this encoder, pooling and clips.")
    clips = len(job.clips)

    def again() -> int:
        epoch = plan_evaluation(job.clips, job.encoder.policy(job.batch))
        loader = Loader(job.index, epoch, rank=0, world=1, per_forward=1, workers=0)
        done = 0
        for _, batches in loader:
            for batch in (batch for batch in batches if batch.clips):
                done += len(encode(job.encoder, batch, job.about.blocks, job.recipe.extract.pool))
        return done

    def cached() -> int:
        epoch = plan_evaluation(job.clips, replace(Policy(packs=4, clips=8), cached=True))
        loader = Loader(job.index, epoch, rank=0, world=1, per_forward=4, workers=0, features=cache)
        return sum(batch.clips for _, batches in loader for batch in batches)

    ways: dict[str, Callable[[], int]] = {"encoded again": again, "from the cache": cached}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, work in ways.items():
            since = time.process_time()
            if work() != clips:
                raise SystemExit(f"{way}: another number of clips.")
            seconds[way].append(time.process_time() - since)
    shown = Table("an epoch of the clips", "CPU seconds", "clips/s", "ratio")
    slow = statistics.median(seconds["encoded again"])
    for way, found in seconds.items():
        took = statistics.median(found)
        shown.add_row(way, f"{took:.2f}", f"{clips / took:,.0f}", f"{slow / took:.1f}x")
    Console().print(shown)


if __name__ == "__main__":
    main()
