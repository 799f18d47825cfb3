"""Fine-tuning on strong and weak clips as it is typed: its scores, at any number of ranks, and after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from finetune.evaluation import evaluate
from finetune.events import Events
from gamut.evaluate.scores import Scores
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import evaluation_policy
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.track.metrics import History
from gamut.train.world import World
from tests.train.ranks import run

from .tuning import tune

SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "model.table_frames=96", "step.packs=4", "step.clips=2"]
SMALL += ["loader.packs_per_forward=2", "epochs=3", "loader.workers=0", "track.mlflow=off", "run.threads=1"]
SMALL += [
    "checkpoint.every_epochs=1",
    "checkpoint.least_minutes=0",
    "optim.lr=3e-2",
    "folds.train=[1]",
    "folds.test=[[2]]",
]
EVENTS = {"psds1", "psds2", "event_f1", "segment_f1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 clips of 1.2 to 2.8 s of noise with a tone in each; every fifth has no times."""
    source = tmp_path_factory.mktemp("events")
    random = np.random.default_rng(0)
    clips, events = ["path,labels,fold"], ["filename,onset,offset,event_label"]
    for number in range(20):
        samples = int(random.uniform(1.2, 2.8) * 16000)
        onset = int(random.integers(samples // 2))
        end = min(onset + int(random.uniform(0.3, 0.9) * 16000), samples)
        waveform = random.normal(scale=0.01, size=samples)
        name, pitch = (("low", 500), ("high", 3000))[number % 2]
        waveform[onset:end] += 0.3 * np.sin(2 * np.pi * pitch / 16000 * np.arange(end - onset))
        soundfile.write(source / f"{number:02}.wav", waveform, 16000, subtype="PCM_16")
        clips.append(f"{number:02}.wav,{name},{1 + number % 4 // 2}")
        if number % 5:
            events.append(f"{number:02},{onset / 16000},{end / 16000},{name}")
    (source / "clips.csv").write_text("\n".join(clips))
    (source / "events.csv").write_text("\n".join(events))
    words = [str(source / "clips.csv"), str(source / "set"), "--events", str(source / "events.csv"), "--workers", "1"]
    assert shards(["convert", "csv", *words]) == 0
    assert shards(["stats", str(source / "set"), "--workers", "1"]) == 0
    return source / "set"


def line(folder: Path, runs: Path, name: str) -> list[str]:
    return ["esc10_events", f"data={folder}", f"run.folder={runs}", f"run.name={name}", *SMALL]


def evaluated(world: World, folder: Path, per_forward: int) -> Scores:
    recipe = load_recipe("finetune", "esc10_events", [f"data={folder}", "run.name=x", *SMALL])
    task, index = Events(recipe, 2, -6.0, 4.0, 0, torch.device("cpu")), Index.open(folder)
    policy = evaluation_policy(recipe)
    return evaluate(task, index, index.table(), policy, workers=0, per_forward=per_forward)


def test_two_ranks_have_the_frames_of_one_clips_in_order(folder: Path) -> None:
    [alone] = run(1, evaluated, folder, 2)
    assert alone.timed is not None
    assert len(alone.timed.clips()) == 16  # those with events
    index = Index.open(folder)
    strong = [row for row in range(20) if len(index.events(row))]
    for clip, row in zip(alone.timed.clips(), strong, strict=True):
        assert clip.edges[-1] == pytest.approx(float(index.samples[row]) / 16000)
        assert np.array_equal(np.rint(clip.events * [16000, 16000, 1]), index.events(row))
    for scores in run(2, evaluated, folder, 2):
        for name, wanted in vars(alone.timed).items():
            found = getattr(scores.timed, name)
            assert np.array_equal(found, wanted) if name != "probability" else np.abs(found - wanted).max() < 1e-6
        assert np.array_equal(scores.logits, alone.logits)


def test_a_run_scores_events_and_goes_on_after_a_kill_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    assert run(1, tune, line(folder, tmp_path, "whole")) == [0]
    (whole,) = (tmp_path / "whole").glob("test-*")
    result = json.loads((whole / "result.json").read_text())
    assert EVENTS | {"mAP"} <= result["metrics"].keys()
    logged = [json.loads(one) for one in (whole / "metrics.jsonl").read_text().splitlines()]
    assert any({f"test/{name}" for name in EVENTS} <= one.keys() for one in logged)
    assert any({"loss/frames", "loss/clips"} <= one.keys() for one in logged)

    shutil.copytree(whole, tmp_path / "killed" / whole.name)  # as it was after the first epoch
    killed = tmp_path / "killed" / whole.name
    first, *later = sorted((killed / "checkpoints").glob("step-*"))
    for one in later:
        shutil.rmtree(one)
    (killed / "checkpoints" / "latest").write_text(f"{first.name}\n")
    for name in ("result.json", "best.safetensors", "scores.npz"):
        (killed / name).unlink()
    assert run(1, tune, line(folder, tmp_path, "killed")) == [0]
    again = json.loads((killed / "result.json").read_text())
    assert again["metrics"] == result["metrics"]
    last = later[-1].name
    mine, theirs = (load_file(one / "checkpoints" / last / "model.safetensors") for one in (killed, whole))
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name
    history = History.read(killed / "metrics.jsonl")
    assert history.last_attempt is not None
