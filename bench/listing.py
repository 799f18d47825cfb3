"""What it costs to list a data set of the size of AudioSet, before any audio is read.

    python bench/listing.py --clips 2000000        # makes that many empty files, and takes them away again

Prints seconds and the growth of resident memory for the source (folders and tables), for the manifest (the records,
sorted, in a file), and for the index that is built when all shards are written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
FOLDER = 50_000  # files in one, about as in PANNs' archives


def video(number: int) -> str:
    """An 11-character ID."""
    number = number * 0x9E3779B97F4A7C15 % 2**64
    return "".join(ALPHABET[number >> 6 * place & 63] for place in range(10)) + ALPHABET[number % 61]


def make(folder: Path, clips: int) -> None:
    """The layout of PANNs' archives, with one clip in ten gone."""
    (folder / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n" + "".join(f"{n},/m/{n:05d},class {n}\n" for n in range(527))
    )
    with open(folder / "unbalanced_train_segments.csv", "w") as table:
        table.write("# Segments csv\n# num_ytids\n# YTID, start_seconds, end_seconds, positive_labels\n")
        for number in range(clips):
            name = video(number)
            table.write(f'{name}, 30.000, 40.000, "/m/{number % 527:05d},/m/{number % 89:05d}"\n')
            if number % FOLDER == 0:
                place = folder / f"unbalanced_train_segments_part{number // FOLDER:02d}"
                place.mkdir()
            if number % 10:
                os.close(os.open(place / f"Y{name}.wav", os.O_CREAT | os.O_WRONLY))


def measure(folder: Path) -> None:
    """In a process of its own, so that its memory is what is measured."""
    sys.path.insert(0, str(ROOT))
    from gamut.shards.convert import SOURCES
    from gamut.shards.convert.run import preview

    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    listing = SOURCES["audioset"]().list(folder)
    listed, middle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with preview(listing) as manifest:
        size = (manifest.folder / "records.jsonl").stat().st_size
        end = time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{manifest.clips:,} clips there, {manifest.missing:,} missing, {len(manifest.shards):,} shards")
        print(f"folders and tables  {middle - begin:7.1f} s of CPU, {(listed - before) / 1024:7.0f} MB")
        print(
            f"manifest            {end - middle:7.1f} s of CPU, {(peak - listed) / 1024:7.0f} MB more, "
            f"{size / 1e6:.0f} MB on disk"
        )
        print(f"peak of the process {peak / 1024:15.0f} MB")


def index(clips: int) -> None:
    """Build the index of shards of 1,000 clips, of which only the parts are there."""
    sys.path.insert(0, str(ROOT))
    from gamut.shards.build import build
    from gamut.shards.part import Part

    rng = random.Random(0)

    def parts() -> Iterator[Part]:
        for shard in range(clips // 1000):
            numbers = range(1000 * shard, 1000 * shard + 1000)
            part = Part(f"shard-{shard:06d}.tar", 0, 0, "audioset", {}, [video(n) for n in numbers])
            part.offset, part.bytes = [rng.randrange(10**8) for _ in numbers], [rng.randrange(10**5) for _ in numbers]
            part.samples, part.clip_checksum = [160_000] * 1000, [rng.getrandbits(64) for _ in numbers]
            part.labels = [[n % 527, n % 89] for n in numbers]
            part.columns = {"split": [1] * 1000, "start_ms": [rng.randrange(10**6) for _ in numbers]}
            yield Part.parse(json.loads(json.dumps(part.dump())))

    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with tempfile.TemporaryDirectory(prefix="gamut-index-") as folder:
        build(Path(folder), "audioset", [f"class {n}" for n in range(527)], parts())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.process_time() - begin
    print(f"parts and index     {seconds:7.1f} s of CPU, {(peak - before) / 1024:7.0f} MB more,", end=" ")
    print(f"peak of the process {peak / 1024:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--index", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        measure(options.folder)
        return
    if options.index:
        index(options.clips)
        return
    with tempfile.TemporaryDirectory(prefix="gamut-listing-") as folder:
        make(Path(folder), options.clips)
        subprocess.run([sys.executable, __file__, "--folder", folder], check=True)
    subprocess.run([sys.executable, __file__, "--index", "--clips", str(options.clips)], check=True)


if __name__ == "__main__":
    main()
