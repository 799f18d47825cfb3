"""Small copies of data sets to be converted, and what came of them."""

from __future__ import annotations

import csv
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from gamut.shards import Index
from gamut.shards.__main__ import main


def sound(path: Path, seconds: float = 0.05, rate: int = 16000, seed: int = 0, **kinds: str) -> np.ndarray:
    """Noise in a new file; its samples as the file holds them, float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * rate))
    soundfile.write(
        path, audio, rate, **({"subtype": "PCM_16"} if path.suffix.lower() in (".wav", ".flac") else {}) | kinds
    )
    return soundfile.read(path, dtype="float32")[0]


def convert(source: str, src: Path, dst: Path, *more: str) -> int:
    return main(["convert", source, str(src), str(dst), "--workers", "1", *more])


@dataclass
class Clip:
    """All that a shard set says of one."""

    shard: int
    samples: int
    labels: tuple[str, ...]
    columns: dict[str, int]
    about: dict  # KEY.json
    audio: np.ndarray  # int16


def clips(dst: Path) -> dict[str, Clip]:
    """key -> clip; the index and the tars must agree."""
    index = Index.open(dst)
    found = {}
    for shard in range(len(index.shards)):
        with tarfile.open(index.shard_path(shard)) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        (dst / "member.flac").unlink(missing_ok=True)
        for row in np.flatnonzero(index.shard == shard):
            key = index.key(int(row))
            about = json.loads(members[f"{key}.json"])
            (dst / "member.flac").write_bytes(members[f"{key}.flac"])
            audio, rate = soundfile.read(dst / "member.flac", dtype="int16")
            labels = tuple(index.labels[label] for label in index.label_ids(int(row)))
            columns = {name: int(values[row]) for name, values in index.columns.items()}
            assert (rate, len(audio)) == (16000, index.samples[row])
            assert (about["labels"], about["columns"]) == (list(labels), columns)
            found[key] = Clip(shard, len(audio), labels, columns, about, audio)
    (dst / "member.flac").unlink(missing_ok=True)
    return found


def missing(dst: Path) -> list[tuple[str, str]]:
    """(clip, split) of those that are not there."""
    path = dst / "index" / "missing.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [(row["clip"], row["split"]) for row in csv.DictReader(file)]


def passed_over(dst: Path) -> dict[str, int]:
    """Why -> how many."""
    return json.loads((dst / "index" / "quarantine.json").read_bytes())["ignored"]
