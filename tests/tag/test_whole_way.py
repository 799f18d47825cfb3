"""A cache of features, a head on it, and tags of the very files: as a person goes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from finetune.end_to_end import EndToEnd
from finetune.heads import TagFeatures, encoder_of
from gamut.export.__main__ import main as export
from gamut.features.__main__ import main as features
from gamut.features.cache import FeatureCache
from gamut.recipe import cli
from gamut.recipe.load import load_recipe
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.tag.__main__ import main as tag

from .rounds import leave_round
from .whispers import talking_whisper


def test_tags_of_files_are_the_heads_on_their_cached_features(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Clips of 5 s, of less and of more, at the 5 s windows and units of 0.2 s of the recipe for ESC-50."""
    rng = np.random.default_rng(0)
    lengths = {"a/one": 5.0, "a/two": 2.3, "b/three": 5.0, "b/four": 9.0}
    for name, seconds in lengths.items():
        path = tmp_path / "src" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * 16000)) / 16000
        tone = 0.3 * np.sin(2 * np.pi * rng.integers(200, 2000) * time)
        soundfile.write(path, tone + rng.normal(0, 0.02, len(time)), 16000, "PCM_16")
    whisper = talking_whisper(tmp_path / "whisper")
    assert shards(["convert", "folder", str(tmp_path / "src"), str(tmp_path / "set"), "--workers", "1"]) == 0
    words = [
        "whisper_tiny_esc50",
        f"init={whisper}",
        f"data={tmp_path / 'set'}",
        f"extract.folder={tmp_path / 'cache'}",
    ]
    assert features(["extract", *words, "extract.dtype=fp32", "loader.workers=0", "run.threads=1"]) == 0
    cache, index = FeatureCache(tmp_path / "cache" / "whisper_tiny_esc50"), Index.open(tmp_path / "set")

    recipe = cli.parse("finetune", ["whisper_at_tltr512_esc50", "head.dim=16"]).recipe
    shape = (cache.info.layers, cache.info.steps, cache.info.dim)
    task = TagFeatures(recipe, len(index.labels), shape, encoder_of(cache), 0, torch.device("cpu"))
    note = {**task.described(), "labels": list(index.labels), "loss": "ce"}
    leave_round(tmp_path / "head", recipe, task.model, note)
    rows = np.arange(len(index))
    with torch.no_grad():
        judged = task.model.eval()(torch.from_numpy(cache.read(rows))).softmax(-1).numpy()
    expected = {index.key(row): dict(zip(index.labels, judged[row].tolist())) for row in rows}

    capsys.readouterr()
    files = [str(tmp_path / "src" / f"{name}.wav") for name in lengths]
    assert tag([str(tmp_path / "head"), "--encoder", str(whisper), *files, "--format", "json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(one["spans"]) for one in found] == [1, 1, 1, 2]  # a cache has the first window of a clip
    for name, one in zip(lengths, found):
        tags = {tag["label"]: tag["probability"] for tag in one["spans"][0]["tags"]}
        assert tags == pytest.approx(expected[name], abs=1e-5)


def test_tags_of_an_encoder_that_learnt_with_its_head(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The Whisper that the run began with gives the shape, the run's file all weights."""
    whisper = talking_whisper(tmp_path / "whisper")
    words = [
        f"encoder={whisper}",
        "head.seconds=2",
        "views.frames=208",
        "head.pool=10",
        "head.dim=16",
        "precision=fp32",
    ]
    recipe = load_recipe("finetune", "whisper_at_end_to_end", words)
    names = ["dog", "rain", "siren"]
    task = EndToEnd(recipe, len(names), names, 0, torch.device("cpu"))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    note = {**task.described(), "labels": names, "loss": "bce"}
    leave_round(tmp_path / "run", recipe, task.model, note)
    sound = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", sound, 16000, "FLOAT")
    with torch.no_grad():
        mel = task.model.whisper.log_mel(torch.from_numpy(sound)[None])
        (judged,) = task.model.eval()(mel, None).sigmoid().tolist()
    assert tag([str(tmp_path / "run"), str(tmp_path / "x.wav"), "--format", "json"]) == 0
    (span,) = json.loads(capsys.readouterr().out)["spans"]
    assert {one["label"]: one["probability"] for one in span["tags"]} == pytest.approx(
        dict(zip(names, judged)), abs=1e-5
    )
    # Exported, both go on as a head on a frozen encoder.
    assert export([str(tmp_path / "run"), "--to", "safetensors", str(tmp_path / "exported")]) == 0
    capsys.readouterr()
    assert tag([str(tmp_path / "exported"), str(tmp_path / "x.wav"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["spans"] == [span]
    assert tag([str(tmp_path / "run"), str(tmp_path / "x.wav"), "--transcribe"]) == 2
    assert "trained its encoder" in capsys.readouterr().err
    other = talking_whisper(tmp_path / "other", dim=16)
    assert tag([str(tmp_path / "run"), str(tmp_path / "x.wav"), "--encoder", str(other)]) == 2
    assert "its run began with another Whisper" in capsys.readouterr().err
