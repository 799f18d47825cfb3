"""Sounds in the layout of ESC-10 and of the spoken digits, for a clone that has no real recordings beside it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import soundfile

from launchers.corpus import CLASSES, sound

# The ten classes of ESC-10 by their numbers in ESC-50.
ESC10 = {0: "dog", 1: "rooster", 10: "rain", 11: "sea_waves", 12: "crackling_fire", 20: "crying_baby"}
ESC10 |= {21: "sneezing", 38: "clock_tick", 40: "helicopter", 41: "chainsaw"}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50  # of each word by each speaker: 0 to 4 are for the test, 5 to 9 for validation


def stand_in(folder: Path) -> Path:
    """Write esc10/ (400 clips of 5 s, 44.1 kHz Ogg, 8 a class and fold) and fsdd/ (3,000 words, 8 kHz WAV) below
    `folder`. One sound serves all folds of its class and take."""
    random = np.random.default_rng(0)
    audio, meta = folder / "esc10" / "audio", folder / "esc10" / "meta"
    audio.mkdir(parents=True)
    meta.mkdir()
    with open(meta / "esc50.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for number, (target, name) in enumerate(ESC10.items()):
            for take in range(8):
                made = sound(CLASSES[(number + take) % len(CLASSES)], 10.0, random)  # at 22,050 Hz: read at twice that
                data = io.BytesIO()
                soundfile.write(data, made, 44_100, format="OGG", subtype="VORBIS")
                for fold in range(1, 6):
                    source = 100_000 * fold + 10 * target + take
                    (audio / f"{fold}-{source}-A-{target}.ogg").write_bytes(data.getvalue())
                    table.writerow([f"{fold}-{source}-A-{target}.ogg", fold, target, name, True, source, "A"])
    lists: dict[str, list[str]] = {"testing": [], "validation": []}
    for word in WORDS:
        (folder / "fsdd" / word).mkdir(parents=True)
        for speaker in SPEAKERS:
            for take in range(TAKES):
                name = f"{word}/{speaker}_nohash_{take}.wav"
                length = int(random.uniform(0.15, 1.0) * 8000)
                wave = 0.1 * random.standard_normal(length) * np.hanning(length)
                soundfile.write(folder / "fsdd" / name, wave, 8000, subtype="PCM_16")
                if take < 10:
                    lists["testing" if take < 5 else "validation"].append(name)
    for name, files in lists.items():
        (folder / "fsdd" / f"{name}_list.txt").write_text("\n".join(files) + "\n")
    return folder
