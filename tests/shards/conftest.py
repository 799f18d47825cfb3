"""A small data set of made sounds, a part of the real ESC-10, and shard sets of them to be read or damaged."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.shards.__main__ import main


def write_sounds(folder: Path, clips: int = 24, classes: tuple[str, ...] = ("bell", "dog", "rain")) -> None:
    """WAVs of 0.1 to 0.5 s of noise at several rates, one folder a class."""
    rng = np.random.default_rng(0)
    for number in range(clips):
        rate = (8000, 16000, 44100)[number % 3]
        path = folder / classes[number % len(classes)] / f"{number:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(scale=0.1, size=int(rate * rng.uniform(0.1, 0.5))), rate, subtype="PCM_16")


def encode(audio: np.ndarray, rate: int, container: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=container, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips in the folders bell, dog and rain."""
    folder = tmp_path_factory.mktemp("made") / "sounds"
    write_sounds(folder)
    return folder


@pytest.fixture(scope="session")
def pristine(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `sounds`, 7 clips a shard, 4 shards. Not to be changed."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    assert main(["convert", "folder", str(sounds), str(folder), "--clips-per-shard", "7", "--workers", "1"]) == 0
    return folder


@pytest.fixture
def shards(pristine: Path, tmp_path: Path) -> Path:
    """A copy of `pristine` to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "set"))


@pytest.fixture(scope="session")
def esc10_part(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 clips of the real ESC-10, two of each class, in its layout."""
    folder = tmp_path_factory.mktemp("esc10")
    (folder / "audio").mkdir()
    (folder / "meta").mkdir()
    with open(shared_data / "esc10" / "meta" / "esc50.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for target in {row["target"] for row in rows} for row in rows if row["target"] == target]
    chosen = [row for number, row in enumerate(chosen) if number % 40 in (0, 39)]
    with open(folder / "meta" / "esc50.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(chosen)
    for row in chosen:
        shutil.copy(shared_data / "esc10" / "audio" / row["filename"], folder / "audio")
    return folder


@pytest.fixture(scope="session")
def members() -> Callable[[Path], dict[str, bytes]]:
    """Every member of a tar, as tarfile reads it."""

    def members(path: Path) -> dict[str, bytes]:
        with tarfile.open(path) as tar:
            found = {}
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
            return found

    return members


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets of one name, set0 to set2, of 10, 9 and 8 clips, and the sounds of each, src0 to src2."""
    place = tmp_path_factory.mktemp("converted")
    for number, clips in enumerate((10, 9, 8)):
        src, dst = place / f"src{number}", place / f"set{number}"
        write_sounds(src, clips)
        for path in sorted(src.rglob("*.wav")):
            path.rename(path.with_name(f"{number}-{path.name}"))
        words = ["--name", "tones", "--clips-per-shard", "4", "--workers", "1"]
        assert main(["convert", "folder", str(src), str(dst), *words]) == 0
    return place
