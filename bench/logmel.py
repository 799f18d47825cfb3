"""Log-mel side by side with torchaudio's Kaldi filter banks, on one core.

    python bench/logmel.py [--clips 16] [--rounds 9]

Three loads of noise: 10 s clips at a hop of 10 ms; clips of 1 to 10 s with a hop of 10 to 40 ms each (ElasticAST's
mixed resolution); and the same lengths at 10 ms with 1 to 4 frames averaged into one (its ablation). torchaudio goes a
clip at a time, since it has no other way; ours takes 8 clips in one call. On the first load kaldi-native-fbank and
lhotse run too (bench/requirements.txt), in processes of their own. All take turns; medians of CPU time and their ratios
are printed, and the largest difference to torchaudio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.peers import Peer
from gamut.audio.logmel import PARAMETERS, log_mel
from gamut.numbers import RATE

BATCH = 8  # clips a call
LOADS = {
    "even": "10 s clips, 10 ms",
    "hops": "1-10 s clips, 10-40 ms, a hop a clip",
    "pooled": "1-10 s clips, 10 ms, averages of 1-4 frames",
}
Segments = list[tuple[torch.Tensor, int, int, int]]  # (int16 samples, hop, frames averaged into one, frames)


def segments(clips: int, load: str) -> Segments:
    """Noise clips; unless `even`, with lengths of their own, and hops or poolings."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(clips):
        samples = 10 * RATE if load == "even" else int(rng.integers(RATE, 10 * RATE))
        hop = 16 * int(rng.integers(5, 21)) * 2 if load == "hops" else 160
        pool = int(rng.integers(1, 5)) if load == "pooled" else 1
        frames = (1 + (samples - 400) // hop) // pool
        waveform = rng.normal(0.0, 3000.0, (frames * pool - 1) * hop + 400).round().clip(-32768, 32767)
        made.append((torch.from_numpy(waveform.astype(np.int16)), hop, pool, frames))
    return made


def batch(clips: Segments) -> dict[str, Any]:
    """The arguments of `log_mel`."""
    lengths = torch.tensor([len(waveform) for waveform, *_ in clips])
    sizes, pools = tuple(frames for *_, frames in clips), tuple(pool for _, _, pool, _ in clips)
    return {
        "waveform": torch.cat([waveform for waveform, *_ in clips]),
        "offset": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        "length": lengths,
        "hop": torch.tensor([hop for _, hop, *_ in clips]),
        "frames": torch.tensor(sizes),
        "sizes": sizes,
        "pool": torch.tensor(pools) if max(pools) > 1 else None,
        "pools": pools,
    }


def torchaudio_alone(clips: Segments) -> torch.Tensor:
    features = []
    for waveform, hop, pool, _ in clips:
        samples = waveform.float() / 32768.0
        samples = samples - samples.mean()
        # Half a sample more: torchaudio truncates milliseconds to samples.
        mel = kaldi.fbank(samples[None], frame_shift=(hop + 0.5) * 1000.0 / RATE, **PARAMETERS)
        features.append(mel if pool == 1 else torch.nn.functional.avg_pool1d(mel.T[None], pool)[0].T)
    return torch.cat(features)


def ways(clips: Segments) -> dict[str, Callable[[], torch.Tensor]]:
    calls = [batch(clips[begin : begin + BATCH]) for begin in range(0, len(clips), BATCH)]
    return {
        "torchaudio.compliance.kaldi": lambda: torchaudio_alone(clips),
        "gamut, exact": lambda: torch.cat([log_mel(**given, mode="exact") for given in calls]),
        "gamut, fast": lambda: torch.cat([log_mel(**given) for given in calls]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for load, title in LOADS.items():
        todo = ways(segments(options.clips, load))
        results = {name: way() for name, way in todo.items()}  # and warms up
        with tempfile.TemporaryDirectory() as folder:
            peers = {} if load != "even" else others(options.clips, Path(folder))
            times: dict[str, list[float]] = {name: [] for name in (*todo, *peers)}
            for _ in range(options.rounds):
                for name, way in todo.items():
                    since = time.process_time()
                    way()
                    times[name].append(time.process_time() - since)
                for name, peer in peers.items():
                    if (done := peer.round()) is not None:
                        times[name].append(done.seconds)
            for peer in peers.values():
                peer.__exit__()
        medians = {name: statistics.median(values) for name, values in times.items() if values}
        first = next(iter(todo))
        table = Table("log-mel, one core: " + title, "clips/s", "x torchaudio", "max abs difference")
        for name, median in medians.items():
            difference = f"{(results[name] - results[first]).abs().max().item():.1e}" if name in results else ""
            table.add_row(name, f"{options.clips / median:.0f}", f"{medians[first] / median:.2f}", difference)
        for name, peer in peers.items():
            if peer.problem:
                table.add_row(name, "", "", peer.problem)
        Console().print(table)


def others(clips: int, folder: Path) -> dict[str, Peer]:
    """Peers in processes of their own, on clips like those of the first load."""
    np.save(folder / "clips.npy", np.stack([waveform.numpy() for waveform, *_ in segments(clips, "even")]))
    names = {"kaldi-native-fbank": "kaldi_native_fbank", "lhotse": "lhotse"}
    return {name: Peer(work, folder / "clips.npy") for name, work in names.items()}


if __name__ == "__main__":
    main()
