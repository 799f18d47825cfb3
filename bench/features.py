"""Records of Whisper-large's features, read at random: our cache beside other ways to keep arrays.

    python bench/features.py [--clips 128] [--rounds 5] [--folder DIR]

Writes the same records [32, 25, 1280] in float16 (2.05 MB each) in every form into a temporary folder, then reads them
all in random order, in batches of 16 that are held until they are whole, each way in turn, one process and one thread,
and prints medians of CPU time and ratios. The page cache is warm for everybody, so it is the software that is measured,
not the disk. Whisper-AT keeps a compressed npz a
clip. webdataset cannot read at random: it reads in order through a shuffle buffer. Ours is checked, record by record;
of the others only npz is (CRC-32).

Peers: pip install -r bench/requirements.txt -c requirements.txt; one that is not there says so in its row.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.features import write_cache
from gamut.features.shard import read_header, shard_name

SHAPE = (32, 25, 1280)  # Whisper-large: blocks, steps of 0.4 s, width
SIZE = int(np.prod(SHAPE)) * 2  # bytes
NPZ = "compressed npz a clip (Whisper-AT)"
OURS = "gamut, checked"
RAW = "raw: one pread each"
BATCH = 16  # records that are held at a time
Held = list[Any] | np.ndarray  # things with `nbytes`, or of bytes
Read = Callable[[list[int]], Held]  # a batch of records by their numbers


def made(clips: int) -> np.ndarray:
    """float16 [clips, 32, 25, 1280]: what features are like, in that noise does not compress."""
    generator = np.random.default_rng(0)
    return np.stack([generator.standard_normal(SHAPE, np.float32).astype(np.float16) for _ in range(clips)])


def npz(folder: Path, x: np.ndarray) -> Read:
    for number, record in enumerate(x):
        np.savez_compressed(folder / f"{number}.npz", record)

    return lambda batch: [np.load(folder / f"{number}.npz")["arr_0"] for number in batch]


def npy(folder: Path, x: np.ndarray) -> Read:
    for number, record in enumerate(x):
        np.save(folder / f"{number}.npy", record)

    return lambda batch: [np.load(folder / f"{number}.npy") for number in batch]


def parquet(folder: Path, x: np.ndarray) -> Read:
    """A row group a record, uncompressed, its bytes in one cell."""
    arrow, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    table = arrow.table({"x": arrow.array([record.tobytes() for record in x], arrow.large_binary())})
    pq.write_table(table, folder / "x.parquet", row_group_size=1, compression="none", use_dictionary=False)
    file = pq.ParquetFile(folder / "x.parquet")

    def one(number: int) -> np.ndarray:
        cell = file.read_row_group(number, use_threads=False).column("x").chunk(0)[0].as_buffer()
        return np.frombuffer(cell, np.float16).reshape(SHAPE)

    return lambda batch: [one(number) for number in batch]


def webdataset(folder: Path, x: np.ndarray) -> Read:
    wds = importlib.import_module("webdataset")
    with wds.TarWriter(str(folder / "x.tar")) as writer:
        for number, record in enumerate(x):
            writer.write({"__key__": str(number), "npy": record})

    def forever() -> Iterator[np.ndarray]:
        while True:
            samples = wds.WebDataset(str(folder / "x.tar"), shardshuffle=False, empty_check=False).shuffle(64).decode()
            yield from (sample["npy"] for sample in samples)

    samples = forever()
    return lambda batch: [next(samples) for _ in batch]


def zarr(folder: Path, x: np.ndarray) -> Read:
    """A chunk a record, uncompressed."""
    library = importlib.import_module("zarr")
    array = library.create_array(
        str(folder / "x.zarr"), shape=x.shape, chunks=(1, *SHAPE), dtype=x.dtype, compressors=None
    )
    array[:] = x
    return lambda batch: [array[number] for number in batch]


def lmdb(folder: Path, x: np.ndarray) -> Read:
    library = importlib.import_module("lmdb")
    store = library.open(str(folder / "x.lmdb"), map_size=2 * x.nbytes + (64 << 20))
    with store.begin(write=True) as writing:
        for number, record in enumerate(x):
            writing.put(f"{number:08d}".encode(), record.tobytes())

    def read(batch: list[int]) -> Held:
        with store.begin() as reading:  # copied: a view ends with its transaction
            return [np.frombuffer(reading.get(f"{number:08d}".encode()), np.float16) for number in batch]

    return read


def ours(folder: Path, x: np.ndarray) -> Read:
    cache = write_cache(folder / "cache", x)
    return cache.read


def raw(folder: Path, x: np.ndarray) -> Read:
    """The same bytes of the same files, unchecked."""
    cache = write_cache(folder / "cache", x)
    about, places = cache.about, []
    descriptors = [os.open(cache.folder / shard_name(number), os.O_RDONLY) for number in range(about.shards)]
    begins = [read_header(cache.folder / shard_name(n), about, n).size for n in range(about.shards)]
    for number in range(len(x)):
        shard, slot = divmod(number, about.per_shard)
        places.append((descriptors[shard], begins[shard] + slot * SIZE))
    return lambda batch: [os.pread(places[number][0], SIZE, places[number][1]) for number in batch]


WAYS: dict[str, Callable[[Path, np.ndarray], Read]] = {
    NPZ: npz,
    ".npy a clip": npy,
    "Parquet, a row group a clip": parquet,
    "webdataset, shuffle buffer": webdataset,
    "zarr, a chunk a clip": zarr,
    "LMDB": lmdb,
    OURS: ours,
    RAW: raw,
}


def prepare(folder: Path, x: np.ndarray) -> tuple[dict[str, Read], dict[str, str]]:
    """(ways that are there, why others are not)."""
    ready: dict[str, Read] = {}
    absent: dict[str, str] = {}
    for number, (name, make) in enumerate(WAYS.items()):
        place = folder / str(number)
        place.mkdir()
        try:
            ready[name] = make(place, x)
        except ImportError as error:
            absent[name] = f"not installed ({error.name})"
    return ready, absent


def rates(ways: dict[str, Read], clips: int, rounds: int) -> dict[str, list[float]]:
    """Records a second of CPU time, of each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        order = np.random.default_rng(turn).permutation(clips).tolist()
        for name, read in ways.items():
            since, done = time.process_time(), 0
            for begin in range(0, clips, BATCH):
                held = read(order[begin : begin + BATCH])
                done += sum(len(one) if isinstance(one, bytes) else one.nbytes for one in held)
            spent = time.process_time() - since
            assert done == clips * SIZE, name
            if turn:  # the first warms the page cache
                found[name].append(clips / spent)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=128, help="records of 2.05 MB (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default 5)")
    parser.add_argument("--folder", type=Path, help="where to write them: eight times the records (default: temporary)")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ways, absent = prepare(Path(folder), made(options.clips))
        found = rates(ways, options.clips, options.rounds)
    table = Table(title=f"{options.clips} records of {SIZE / 1e6:.2f} MB, random order, warm cache, one core")
    for heading in ("way", "clips/s", "GB/s", "to npz", "of raw pread"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name in WAYS:
        if name in absent:
            table.add_row(name, absent[name])
            continue
        rate = statistics.median(found[name])
        to_npz, of_raw = ratio(found, name, NPZ), ratio(found, name, RAW)
        table.add_row(name, f"{rate:,.0f}", f"{rate * SIZE / 1e9:.2f}", f"{to_npz:.1f}x", f"{of_raw:.0%}")
    console.print(table)


def ratio(found: dict[str, list[float]], name: str, other: str) -> float:
    """The median of a round's ratios: what slows a round slows both."""
    pairs: Any = zip(found[name], found[other])
    return statistics.median(one / two for one, two in pairs)


if __name__ == "__main__":
    main()
