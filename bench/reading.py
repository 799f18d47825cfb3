"""From shards to bytes and to batches, side by side with webdataset on the same tars.

    python bench/reading.py [--clips 200] [--rounds 3]

Makes its own shards (10 s clips of noise, about 100 KB of FLAC each) in a temporary folder, then runs peer and ours
in turn, one process and one thread each, and prints medians of CPU time and ratios. The page cache is warm for
everybody, so it is the software that is measured, not the disk. Members are read in random order by ours; webdataset
and Megatron-Energon, which cannot, read in order through a shuffle buffer of 1,000 clips; litdata
(bench/requirements.txt) and mosaicml-streaming shuffle as they do, from their own formats. `python bench/peers.py`
makes the environments of mosaicml-streaming and Megatron-Energon.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.compliance.kaldi as kaldi
import webdataset as wds
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.peers import Peer
from gamut.audio.decode import encode_flac
from gamut.audio.logmel import log_mel
from gamut.data.loader import Loader
from gamut.data.reader import Reader
from gamut.plan import Policy, plan_epoch
from gamut.shards import Index
from gamut.shards.__main__ import main as shards

SECONDS = 10
RATE = 16_000
BATCH = 8  # clips a batch
PASSES = 5  # over all members, a turn
PEER = "webdataset, shuffle buffer"
RAW = "raw, 1 MiB blocks"


def make(folder: Path, clips: int) -> Path:
    """A set of shards of 10 s clips."""
    rng = np.random.default_rng(0)
    source = folder / "source" / "noise"
    source.mkdir(parents=True)
    for clip in range(clips):
        waveform = rng.normal(scale=9.0, size=SECONDS * RATE).round().astype(np.int16)
        (source / f"clip{clip:05d}.flac").write_bytes(encode_flac(waveform))
    if shards(["convert", "folder", str(source.parent), str(folder / "shards")]):
        raise SystemExit(2)
    return folder / "shards"


def rounds(ways: dict[str, Callable[[], int]], count: int, peers: dict[str, Peer] | None = None) -> dict[str, float]:
    """Things a second of CPU time of each way, the median of `count` rounds in which the ways take turns."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(count):
        for name, way in ways.items():
            since = time.process_time()
            done = way()
            rates[name].append(done / (time.process_time() - since))
        for name, peer in (peers or {}).items():
            if (told := peer.round()) is not None:
                rates.setdefault(name, []).append(told.units / told.seconds)
    return {name: statistics.median(values) for name, values in rates.items()}


def members(index: Index, tars: list[str]) -> dict[str, Callable[[], int]]:
    """Ways to read every member's bytes, PASSES times; each returns the bytes read."""
    order = np.random.default_rng(1).permutation(len(index)).tolist()
    reader = Reader(index)
    descriptors = [os.open(tar, os.O_RDONLY) for tar in tars]
    places = list(zip(index.shard.tolist(), index.size.tolist(), index.offset.tolist()))

    def peer() -> int:
        samples = wds.WebDataset(tars, shardshuffle=False, empty_check=False).shuffle(1000)
        return sum(len(sample["flac"]) for _ in range(PASSES) for sample in samples)

    def ours() -> int:
        return sum(len(reader.read(row)) for _ in range(PASSES) for row in order)

    def plain() -> int:
        return sum(
            len(os.pread(descriptors[shard], size, offset)) for _ in range(PASSES) for shard, size, offset in places
        )

    def raw() -> int:
        done = 0
        for tar in tars * PASSES:
            with open(tar, "rb", buffering=0) as file:
                while block := file.read(1 << 20):
                    done += len(block)
        return done

    return {PEER: peer, "gamut, random order, checked": ours, "one pread each, in order": plain, RAW: raw}


def batches(index: Index, tars: list[str]) -> dict[str, Callable[[], int]]:
    """Ways from shards to int16 batches, and to log-mel; each returns the clips done."""
    epoch = plan_epoch(index.table(), 0, 0, Policy(packs=1, clips=BATCH, tokens=None, pad=False))

    def peer(features: bool) -> Callable[[], int]:
        def decode(key: str, payload: bytes) -> np.ndarray | None:
            return soundfile.read(io.BytesIO(payload), dtype="int16")[0] if key.endswith("flac") else None

        def run() -> int:
            clips = wds.WebDataset(tars, shardshuffle=False, empty_check=False).shuffle(1000).decode(decode)
            done = 0
            for samples in clips.to_tuple("flac").batched(BATCH, collation_fn=list, partial=True):
                batch = torch.from_numpy(np.stack([waveform for (waveform,) in samples]))
                if features:
                    for waveform in batch.float() / 32768:
                        kaldi.fbank(
                            (waveform - waveform.mean())[None],
                            htk_compat=True,
                            sample_frequency=RATE,
                            use_energy=False,
                            window_type="hanning",
                            num_mel_bins=128,
                            dither=0.0,
                            frame_shift=10,
                        )
                done += len(batch)
            return done

        return run

    def ours(features: bool) -> Callable[[], int]:
        def run() -> int:
            done = 0
            for _, (batch,) in Loader(index, epoch, rank=0, world=1, per_forward=1, workers=0):
                if features:
                    log_mel(batch.waveform, batch.offset, batch.length, batch.hop, batch.frames, batch.sizes)
                done += batch.clips
            return done

        return run

    return {
        "webdataset + soundfile": peer(False),
        "gamut Loader": ours(False),
        "webdataset + soundfile + kaldi log-mel": peer(True),
        "gamut Loader + log-mel on the CPU": ours(True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200, help="10 s clips to make (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        index = Index.open(make(Path(folder), options.clips))
        tars = [str(index.shard_path(shard)) for shard in range(int(index.shard.max()) + 1)]
        size = float(np.mean(index.size))

        table = Table(title=f"Members of {size / 1000:.0f} KB, {len(index)} of them, warm cache, one core")
        for heading in ("way", "members/s", "MB/s", "to webdataset", "of raw"):
            table.add_column(heading, justify="left" if heading == "way" else "right")
        peers = {
            "litdata": Peer("litdata", index.folder),
            "mosaicml-streaming": Peer("mosaic", index.folder, "mosaic"),
            "Megatron-Energon": Peer("energon", index.folder, "energon"),
        }
        rates = rounds(members(index, tars), options.rounds, peers)
        peer, raw = rates[PEER], rates[RAW]
        for name, rate in rates.items():
            table.add_row(name, f"{rate / size:,.0f}", f"{rate / 1e6:,.0f}", f"{rate / peer:.1f}x", f"{rate / raw:.0%}")
        for name, other in peers.items():
            if other.problem:
                table.add_row(name, other.problem)
            other.__exit__()
        console.print(table)

        table = Table(title=f"Shards to batches of {BATCH} clips of {SECONDS} s, one core")
        for heading in ("way", "clips/s", "ratio to the peer above"):
            table.add_column(heading, justify="left" if heading == "way" else "right")
        rates = rounds(batches(index, tars), options.rounds)
        before = 0.0
        for number, (name, rate) in enumerate(rates.items()):
            table.add_row(name, f"{rate:,.0f}", f"{rate / before:.1f}x" if number % 2 else "")
            before = rate
        plain, full = (rates[name] for name in ("gamut Loader", "webdataset + soundfile + kaldi log-mel"))
        console.print(table)
        console.print(
            f"Int16 batches, which is all that is asked of the CPU where the log-mel runs on the device: "
            f"{plain / full:.1f}x the peer's way to log-mel."
        )


if __name__ == "__main__":
    main()
