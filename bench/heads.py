"""From cached features to batches for a head, side by side with a compressed npz a clip.

    python bench/heads.py [--clips 256] [--workers 2] [--rounds 3]

Makes random features of Whisper-large's shape ([32, 25, 1280] in fp16, 2.05 MB a clip) in a temporary folder, as a
cache and, as whisper-at keeps them, as a compressed .npz a clip. Then, in turn: the records by positional reads alone
(raw), by `FeatureCache.read` (verified), as batches of 48 from the loader that trains a head, and the .npz through
torch's DataLoader with as many workers. Medians of CPU seconds, those of the workers included, so the rates are of one
core, whatever else the machine does; the page cache is warm for everybody.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.data.loader import Loader
from gamut.features import FeatureCache, write_cache
from gamut.plan import Clips, Policy, plan_epoch

SHAPE = (32, 25, 1280)
BATCH = 48


class Npz(Dataset):
    """A compressed file a clip."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.clips = folder, clips

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, clip: int) -> torch.Tensor:
        with np.load(self.folder / f"{clip}.npz", allow_pickle=False) as file:
            return torch.from_numpy(file["arr_0"])


def raw(folder: Path, record: int, order: np.ndarray) -> int:
    """Positional reads of the cache's records in this order, into one buffer; the bytes read."""
    paths = sorted(folder.glob("*.safetensors"))
    files = [os.open(path, os.O_RDONLY) for path in paths]
    heads = [os.fstat(file).st_size % record for file in files]
    buffer, done = bytearray(record), 0
    for clip in order.tolist():
        shard, slot = divmod(clip, 128)
        done += os.preadv(files[shard], [buffer], heads[shard] + slot * record)
    for file in files:
        os.close(file)
    return done


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    clips, random = options.clips, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = random.standard_normal((8, *SHAPE), np.float32).astype(np.float16)
        cache = write_cache(folder / "cache", np.concatenate([x] * -(-clips // 8))[:clips])
        (folder / "npz").mkdir()
        for clip in range(clips):
            if clip < len(x):
                np.savez_compressed(folder / "npz" / f"{clip}.npz", x[clip])
            else:  # compressing takes longer than all the rest
                shutil.copy(folder / "npz" / f"{clip % len(x)}.npz", folder / "npz" / f"{clip}.npz")
        report(folder, cache, options)


def report(folder: Path, cache: FeatureCache, options: argparse.Namespace) -> None:
    clips, record = options.clips, cache.info.record_bytes
    ones = np.ones(clips, np.int64)
    table = Clips(np.arange(clips), cache.clip_id, 0 * ones, 16000 * ones, ones)
    epoch = plan_epoch(table, 0, 0, Policy(packs=4, clips=BATCH // 4, mixup=0.5, cached=True))
    index = SimpleNamespace(label_ids=lambda row: np.zeros(1, np.int32))
    order = np.random.default_rng(1).permutation(clips)

    def loader() -> int:
        made = Loader(index, epoch, rank=0, world=1, per_forward=4, workers=options.workers, features=cache)  # type: ignore[arg-type]
        return sum(batch.bytes for _, batches in made for batch in batches)

    def npz() -> int:
        made = DataLoader(Npz(folder / "npz", clips), BATCH, shuffle=True, num_workers=options.workers)
        return sum(batch.nbytes for batch in made)

    ways: dict[str, Callable[[], int]] = {
        "raw positional reads": lambda: raw(cache.folder, record, order),
        "FeatureCache.read, verified": lambda: sum(cache.read([clip]).nbytes for clip in order.tolist()),
        f"batches of {BATCH} from the loader, {options.workers} workers": loader,
        f"compressed npz through DataLoader, {options.workers} workers": npz,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, work in ways.items():
            since = cpu()
            if work() != clips * record:
                raise SystemExit(f"{way} gave another number of bytes.")
            seconds[way].append(cpu() - since)
    middle = {way: statistics.median(found) for way, found in seconds.items()}
    first, last = next(iter(ways)), list(ways)[-1]
    shown = Table("way", "clips/s a core", "MB/s", "of raw", "of npz")
    for way, took in middle.items():
        rate = clips / took
        shown.add_row(
            way,
            f"{rate:,.0f}",
            f"{rate * record / 1e6:,.0f}",
            f"{middle[first] / took:.0%}",
            f"{middle[last] / took:.1f}x",
        )
    Console().print(shown)


if __name__ == "__main__":
    main()
