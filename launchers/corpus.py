"""A small synthetic labelled corpus, in the ESC-50 layout or a folder a class, for the demo, tutorials and tests.

Six kinds of shapes, each with random pitch, rate, level and background noise, so that classes differ in their shape
over time and frequency, not in loudness or pitch; or ten kinds of scenes (launchers/scenes.py), which are harder.

Example:
    python launchers/corpus.py /tmp/corpus --clips 240
    python launchers/corpus.py /tmp/corpus --clips 800 --sounds scenes
    python launchers/corpus.py sounds --layout folder
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

import numpy as np
import soundfile

from gamut.files import write_text
from launchers.scenes import RATE, SCENES, scene

CLASSES = ("rising_chirp", "falling_chirp", "trill", "vibrato", "clicks", "noise_bursts")
Kinds = tuple[str, ...]


def sound(kind: str, seconds: float, random: np.random.Generator) -> np.ndarray:
    """One clip of a kind of either sort, float64 [seconds * RATE], peak under 1."""
    if kind in SCENES:
        return scene(kind, seconds, random)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 2.0 ** random.uniform(math.log2(300), math.log2(2400))
    rate = random.uniform(2.0, 5.0)
    phase = (time * rate + random.uniform()) % 1.0
    if kind == "rising_chirp":
        frequency = pitch * 2.0 ** (1.5 * phase)
    elif kind == "falling_chirp":
        frequency = pitch * 2.0 ** (1.5 * (1.0 - phase))
    elif kind == "trill":
        frequency = np.where((time * rate * 2) % 1.0 < 0.5, pitch, pitch * 1.5)
    elif kind == "vibrato":
        frequency = pitch * 2.0 ** (0.4 * np.sin(2 * np.pi * rate * time))
    else:
        frequency = np.zeros_like(time)
    if kind == "clicks":
        wave = np.exp(-phase * 60.0) * random.standard_normal(len(time))
    elif kind == "noise_bursts":
        wave = (phase < 0.5) * random.standard_normal(len(time)) * 0.3
    else:
        angle = 2 * np.pi * np.cumsum(frequency) / RATE
        overtones = np.arange(1, int(random.integers(2, 5)))[:, None]
        wave = (np.sin(overtones * angle) / overtones).sum(0)
    wave = wave / np.abs(wave).max() * 10.0 ** random.uniform(-0.9, -0.2)
    wave += random.standard_normal(len(time)) * 10.0 ** random.uniform(-2.6, -1.4)
    return wave / max(1.0, np.abs(wave).max() * 1.01)


def by_class(folder: Path, clips: int, seconds: float = 2.0, seed: int = 0, kinds: Kinds = CLASSES) -> Path:
    """Write `clips` clips, spread over the kinds, as FOLDER/KIND/NUMBER.wav."""
    random = np.random.default_rng(seed)
    for number in range(clips):
        kind = kinds[number % len(kinds)]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        path = folder / kind / f"{number:04d}.wav"
        soundfile.write(path, sound(kind, seconds, random), RATE, subtype="PCM_16")
    return folder


def synthesise(folder: Path, clips: int, seconds: float = 2.0, seed: int = 0, kinds: Kinds = CLASSES) -> Path:
    """Write `clips` clips (spread over the kinds and folds 1-5) below `folder`, then meta/esc50.csv: if that file
    exists, the corpus is complete."""
    random = np.random.default_rng(seed)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    (folder / "meta").mkdir(exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
    for number in range(clips):
        target = number % len(kinds)
        fold = number // len(kinds) % 5 + 1
        name = f"{fold}-{100_000 + number}-A-{target}.wav"
        soundfile.write(folder / "audio" / name, sound(kinds[target], seconds, random), RATE, subtype="PCM_16")
        table.writerow([name, fold, target, kinds[target], False, 100_000 + number, "A"])
    write_text(folder / "meta" / "esc50.csv", text.getvalue())
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=("esc50", "folder"), default="esc50", help="default: %(default)s")
    parser.add_argument("--sounds", choices=("shapes", "scenes"), default="shapes", help="default: %(default)s")
    options = parser.parse_args()
    write = synthesise if options.layout == "esc50" else by_class
    kinds = CLASSES if options.sounds == "shapes" else tuple(SCENES)
    print(write(options.folder, options.clips, options.seconds, options.seed, kinds))
