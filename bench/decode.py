"""FLAC decode, side by side with soundfile, on the same payloads.

    python bench/decode.py [--audio FOLDER] [--clips 60] [--rounds 9]

Clips are 10 s of 16 kHz mono int16, cut from the sound files under --audio (strung together where they are shorter),
or made of coloured noise without it. soundfile, PyAV, torchcodec (bench/requirements.txt) and ours decode all of them
in turn, one thread each, from memory; soundfile's samples and ours are compared; medians of CPU time over the rounds
and their ratios are printed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.peers import Peer
from gamut.audio.decode import decode_flac, encode_flac, read_audio, to_int16_16k
from gamut.audio.kinds import is_sound
from gamut.numbers import RATE

SAMPLES = 10 * RATE


def recorded(folder: Path, clips: int) -> list[np.ndarray]:
    """10 s clips of the sound files under a folder, int16 [160000] each."""
    paths = sorted(path for path in folder.rglob("*") if is_sound(path))
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
    """Clips a second of CPU time."""
    since = time.process_time()
    for payload in payloads:
        way(payload)
    return len(payloads) / (time.process_time() - since)


def tar(payloads: Sequence[bytes], folder: Path) -> Path:
    """The payloads in a tar, from which the peers' processes take them."""
    with tarfile.open(folder / "clips.tar", "w") as file:
        for number, payload in enumerate(payloads):
            member = tarfile.TarInfo(f"{number:06d}.flac")
            member.size = len(payload)
            file.addfile(member, io.BytesIO(payload))
    return folder


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
    ways = {"soundfile": with_soundfile, "gamut (miniaudio)": ours}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        place = tar(payloads, Path(folder))
        peers = {"PyAV": Peer("pyav", place), "torchcodec": Peer("torchcodec", place)}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                rates[name].append(rate(way, payloads))
            for name, peer in peers.items():
                if (done := peer.round()) is not None:
                    rates.setdefault(name, []).append(done.units / done.seconds)
        for peer in peers.values():
            peer.__exit__()
    medians = {name: statistics.median(found) for name, found in rates.items()}
    each = sum(map(len, payloads)) / len(payloads) / 1000
    table = Table(title=f"FLAC, 10 s at 16 kHz, {each:.0f} kB a clip; bit by bit the same samples")
    for column in ("way", "clips/s (median)", "x soundfile"):
        table.add_column(column)
    for name, median in medians.items():
        table.add_row(name, f"{median:,.0f}", f"{median / medians['soundfile']:.2f}")
    for name, peer in peers.items():
        if peer.problem:
            table.add_row(name, peer.problem, "")
    Console().print(table)


if __name__ == "__main__":
    main()
