"""Log-mel side by side with torchaudio's Kaldi filter banks, on one core.

    python bench/logmel.py [--clips 16] [--rounds 9]

Two loads of noise: 10 s clips at a hop of 10 ms, and clips of 1 to 10 s with a hop of 10 to 40 ms each (ElasticAST's
mixed resolution). torchaudio goes a clip at a time, since it has no other way; ours takes 8 clips in one call. Peer
and ours take turns; medians and their ratio are printed, and the largest difference between the two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
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

from gamut.audio.logmel import PARAMETERS, RATE, log_mel

BATCH = 8  # clips a call
Segments = list[tuple[torch.Tensor, int, int]]  # (int16 samples, hop, frames)


def segments(clips: int, mixed: bool) -> Segments:
    """Noise clips; `mixed`: with lengths and hops of their own."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(clips):
        samples = int(rng.integers(RATE, 10 * RATE)) if mixed else 10 * RATE
        hop = 16 * int(rng.integers(5, 21)) * 2 if mixed else 160
        frames = 1 + (samples - 400) // hop
        waveform = rng.normal(0.0, 3000.0, (frames - 1) * hop + 400).round().clip(-32768, 32767)
        made.append((torch.from_numpy(waveform.astype(np.int16)), hop, frames))
    return made


def batch(clips: Segments) -> dict[str, Any]:
    """The arguments of `log_mel`."""
    lengths = torch.tensor([len(waveform) for waveform, _, _ in clips])
    sizes = tuple(frames for _, _, frames in clips)
    offset = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    hops = torch.tensor([hop for _, hop, _ in clips])
    waveform = torch.cat([waveform for waveform, _, _ in clips])
    frames = torch.tensor(sizes)
    return {"waveform": waveform, "offset": offset, "length": lengths, "shift": hops, "frames": frames, "sizes": sizes}


def torchaudio_alone(clips: Segments) -> torch.Tensor:
    features = []
    for waveform, hop, _ in clips:
        samples = waveform.float() / 32768.0
        samples = samples - samples.mean()
        # Half a sample more: torchaudio truncates milliseconds to samples.
        features.append(kaldi.fbank(samples[None], frame_shift=(hop + 0.5) * 1000.0 / RATE, **PARAMETERS))
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
    for title, mixed in (("10 s clips, 10 ms", False), ("1-10 s clips, 10-40 ms, a hop a clip", True)):
        todo = ways(segments(options.clips, mixed))
        results = {name: way() for name, way in todo.items()}  # and warms up
        times: dict[str, list[float]] = {name: [] for name in todo}
        for _ in range(options.rounds):
            for name, way in todo.items():
                since = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - since)
        medians = {name: statistics.median(values) for name, values in times.items()}
        peer = next(iter(todo))
        table = Table("log-mel, one core: " + title, "clips/s", "x torchaudio", "max abs difference")
        for name, median in medians.items():
            difference = (results[name] - results[peer]).abs().max().item()
            table.add_row(name, f"{options.clips / median:.0f}", f"{medians[peer] / median:.2f}", f"{difference:.1e}")
        Console().print(table)


if __name__ == "__main__":
    main()
