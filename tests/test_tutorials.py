"""The tutorials, typed from top to bottom as they stand, in an empty folder, on less data than they speak of."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from launchers.corpus import by_class, synthesise
from tests import warm
from tests.models.whispers import saved_by_transformers

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "tutorials"
SMALL = "epochs=1 model.dim=32 model.depth=1 model.heads=1 run.threads=1 loader.workers=0 track.mlflow=off"
SMALL += " track.picture_epochs=0"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.M | re.S)


class Way(NamedTuple):
    """How a page is gone through."""

    given: Callable[[Path], object]  # makes what the reader has at the beginning
    shorter: dict[str, str]  # words -> what stands in their place, each of which must be there
    made: tuple[str, ...]  # what is there at the end


def nothing(folder: Path) -> None:
    """The page makes its own sounds."""


def esc50(folder: Path) -> None:
    synthesise(folder / "ESC-50", 60, seconds=1.5)


def audioset(folder: Path) -> None:
    place = folder / "AudioSet"
    place.mkdir()
    (place / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/09x0r,"Speech"\n')
    rows = "".join(f'video_{number:05d}, 0.000, 10.000, "/m/09x0r"\n' for number in range(12))
    (place / "balanced_train_segments.csv").write_text(f"# one\n# two\n# YTID, start_seconds, end_seconds, x\n{rows}")
    for number in range(10):
        noise = np.random.default_rng(number).normal(scale=0.1, size=8000)
        soundfile.write(place / f"video_{number:05d}.wav", noise, 16000)


def digits(folder: Path) -> None:
    """Two words of two speakers, in the layout of the Free Spoken Digit Dataset."""
    for number in range(200):
        word, speaker, index = number % 2, number // 2 % 2, number // 4
        path = folder / "DIGITS" / ("one", "two")[word] / f"{('anna', 'otto')[speaker]}_nohash_{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        hertz = (300, 500)[speaker] * (1 + word)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(3200) / 8000), 8000, subtype="PCM_16")


def whisper(folder: Path) -> None:
    esc50(folder)
    (folder / "models").mkdir()
    saved_by_transformers(folder / "models" / "whisper-tiny")


def sounds(folder: Path) -> None:
    by_class(folder / "sounds", 30, seconds=1.0)


def table(folder: Path) -> None:
    (folder / "source").mkdir()
    by_class(folder / "source" / "sounds", 30, seconds=1.0)
    files = sorted((folder / "source").rglob("*.wav"))
    with open(folder / "source" / "table.csv", "w", newline="") as file:
        rows = [["file", "class"], *([path.relative_to(folder / "source"), path.parent.name] for path in files)]
        csv.writer(file).writerows(rows)


WAYS = {
    "own_sounds": Way(
        nothing,
        {"--clips 240": "--clips 30 --seconds 1", "run.name=tagger": f"run.name=tagger {SMALL}"},
        ("shards/mine/index/statistics.json", "tags.jsonl", "runs/tagger/report.html"),
    ),
    "esc50": Way(
        esc50,
        {
            "run.name=heard\n": f"run.name=heard {SMALL} asit.prototypes=16 asit.hidden=16 probe.every_epochs=1\n",
            "run.name=tuned\n": f"run.name=tuned {SMALL}\n",
            "--seeds 3": "--seeds 1",
            "data=shards/esc\n```\n\n**Look**": f"data=shards/esc {SMALL}\n```\n\n**Look**",
            "--grid 5e-4,1e-3": "--grid 1e-3",
        },
        ("runs/heard/probe/scores.json", "runs/compared/comparison.json", "runs/tuned/report.html"),
    ),
    "audioset_slurm": Way(audioset, {"/data/AudioSet": "AudioSet", "estimate asit_b": "estimate asit_tiny"}, ()),
    "elastic": Way(
        digits,
        {
            "utterances.py DIGITS utterances": "utterances.py DIGITS utterances --train 4 --test 2",
            "data=shards/utterances\n": f"data=shards/utterances {SMALL}\n",
        },
        ("runs/sweep/sweep.json",),
    ),
    "whisper_head": Way(
        whisper,
        {
            "whisper_tiny_esc50 init": "whisper_tiny_esc50 extract.seconds=2 loader.workers=0 init",
            "run.name=head": "run.name=head epochs=1 finetune.average_from=1 run.threads=1 track.mlflow=off",
        },
        ("features/whisper_tiny_esc50", "runs/head/summary.json", "analysis"),
    ),
    "notebook": Way(sounds, {}, ()),
    "own_parts": Way(
        table,
        {
            "run.name=loud\n": f"run.name=loud {SMALL} views.frames=48 probe.every_epochs=0\n",
            "run.name=peaks\n": f"run.name=peaks {SMALL}\n",
        },
        ("runs/loud/checkpoints/latest", "runs/peaks/summary.json"),
    ),
}


def test_every_tutorial_is_gone_through_and_listed() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == set(WAYS)
    assert set(re.findall(r"\((\w+)\.md\)", (PAGES / "README.md").read_text())) == pages


@pytest.mark.parametrize("name", WAYS)
def test_a_tutorial_works_as_it_is_typed(name: str, tmp_path: Path) -> None:
    way, text = WAYS[name], (PAGES / f"{name}.md").read_text()
    for words, fewer in way.shorter.items():
        assert words in text, words
        text = text.replace(words, fewer)
    for top in ("finetune", "pretrain", "launchers", "configs"):
        (tmp_path / top).symlink_to(ROOT / top)
    way.given(tmp_path)
    blocks = BLOCK.findall(text)
    module = "".join(block for language, block in blocks if language == "python")
    if module:
        (tmp_path / "mine.py").write_text(module)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(warm.python()).parent}{os.pathsep}{environment['PATH']}"
    script = "\n".join(
        block.replace("PYTHONPATH=$PWD", f"PYTHONPATH=$PWD:{ROOT}") for language, block in blocks if language == "bash"
    )
    script = script if script else "python mine.py"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert not [place for place in way.made if not (tmp_path / place).exists()], os.listdir(tmp_path)
