"""FLAC decode, side by side with soundfile, on the same payloads.

    python bench/decode.py [--audio FOLDER] [--clips 60] [--rounds 9]

Clips are 10 s of 16 kHz mono int16, cut from the sound files under --audio (strung together where they are shorter),
or made of coloured noise without it. soundfile and ours decode all of them in turn, one thread each, from memory; the
samples are compared; medians over the rounds and their ratio are printed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.audio.decode import RATE, decode_flac, encode_flac, read_audio, to_int16_16k
from gamut.shards.convert.folder import SUFFIXES

SAMPLES = 10 * RATE


def recorded(folder: Path, clips: int) -> list[np.ndarray]:
    """10 s clips of the sound files under a folder, int16 [160000] each."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"There are no sound files under {folder}.")
    pieces: list[np.ndarray] = []
    total = 0
    for path in paths[:: max(1, len(paths) // (3 * clips))]:
        waveform, _ = to_int16_16k(*read_audio(path))
        pieces.append(waveform)
        total += len(waveform)
        if total >= clips * SAMPLES:
            break
    whole = np.resize(np.concatenate(pieces), clips * SAMPLES)
    return list(whole.reshape(clips, SAMPLES))


def made(clips: int) -> list[np.ndarray]:
    """Noise that falls with frequency, as sound does; int16 [160000] each."""
    rng = np.random.default_rng(0)
    shape = 1.0 / np.sqrt(1.0 + np.arange(SAMPLES // 2 + 1) / 500.0)
    waves = [np.fft.irfft(np.fft.rfft(rng.normal(scale=3000.0, size=SAMPLES)) * shape, SAMPLES) for _ in range(clips)]
    return [wave.round().clip(-32768, 32767).astype(np.int16) for wave in waves]


def with_soundfile(payload: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(payload), dtype="int16")[0]


def ours(payload: bytes) -> np.ndarray:
    return decode_flac(payload, SAMPLES)


def rate(way: Callable[[bytes], np.ndarray], payloads: Sequence[bytes]) -> float:
    """Clips a second."""
    since = time.perf_counter()
    for payload in payloads:
        way(payload)
    return len(payloads) / (time.perf_counter() - since)


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="folder of sound files (default: made noise)")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    waveforms = recorded(arguments.audio, arguments.clips) if arguments.audio else made(arguments.clips)
    payloads = [encode_flac(waveform) for waveform in waveforms]
    for payload, waveform in zip(payloads, waveforms):
        assert np.array_equal(ours(payload), waveform)
        assert np.array_equal(with_soundfile(payload), waveform)
    rates: dict[str, list[float]] = {"soundfile": [], "gamut (miniaudio)": []}
    for _ in range(arguments.rounds):
        for name, way in zip(rates, (with_soundfile, ours)):
            rates[name].append(rate(way, payloads))
    peer, mine = (statistics.median(found) for found in rates.values())
    each = sum(map(len, payloads)) / len(payloads) / 1000
    table = Table(title=f"FLAC, 10 s at 16 kHz, {each:.0f} kB a clip; bit by bit the same samples")
    for column in ("way", "clips/s (median)", "ratio"):
        table.add_column(column)
    table.add_row("soundfile", f"{peer:,.0f}", "1.00")
    table.add_row("gamut (miniaudio)", f"{mine:,.0f}", f"{mine / peer:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
