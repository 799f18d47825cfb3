"""AudioSet without audio: an index with its clips and splits, to see what a dry run says of the real set.

    python bench/stand_in.py /tmp/audioset-2m
    python launchers/slurm.py pretrain asit_b data=/tmp/audioset-2m --nodes 1 --gpus 4 --dry-run

Clips are as many as the official tables list; 95 in 100 last 10 s, the others 1 to 10 s (as in bench/packing.py). The
tars are empty files: nothing can be trained on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.packing import audioset
from gamut.shards.build import build
from gamut.shards.part import Part

TABLES = (22_160, 2_041_789, 20_371)  # clips: balanced, unbalanced, evaluation
NAMES = {"split": {"as-20k": (0,), "as-2m": (0, 1), "evaluation": (2,)}}
A_SHARD = 1000
CLASSES = 527
BYTES = 185_000  # of 10 s of FLAC


def write(folder: Path, tables: tuple[int, ...] = TABLES, seed: int = 0) -> None:
    """Shards of one split each, as `convert audioset` makes them."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts, clip = [], 0
    for split, clips in enumerate(tables):
        for first in range(0, clips, A_SHARD):
            own = range(clip, clip + min(A_SHARD, clips - first))
            clip = own.stop
            samples = np.maximum(400, (audioset(random, len(own)) * 16_000).astype(np.int64))
            size = samples * BYTES // 160_000
            name = f"shard-{len(parts):06d}.tar"
            whole = int(size.sum())
            with open(folder / name, "wb") as tar:
                tar.truncate(whole)  # which takes no room
            keys, labels = [f"clip-{number:07d}" for number in own], [[number % CLASSES] for number in own]
            start, checksums, columns = np.cumsum(size) - size, [0] * len(own), {"split": [split] * len(own)}
            parts.append(Part(name, whole, 0, "audioset", {}, keys, start, size, samples, checksums, labels, columns))  # type: ignore[arg-type]
    build(folder, "audioset", [str(number) for number in range(CLASSES)], parts, names=NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write it; about 200 MB")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
