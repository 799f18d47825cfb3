"""A model of frames tags events: with the frames of its own forward, over the cuts of a long recording, as typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from finetune.events import Events as Objective
from gamut.data.events import edges
from gamut.data.memory import packed
from gamut.evaluate.events import smoothed
from gamut.export.__main__ import main as export
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import metadata_of
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import evaluation_policy
from gamut.tag import Recording, load
from gamut.tag.__main__ import main
from gamut.tag.events import Events, found_events

from .rounds import leave_round

LABELS = ("bell", "dog", "rain")
SMALL = ["model.dim=32", "model.depth=1", "model.heads=2", "model.table_frames=96", "run.name=x", "step.clips=2"]


@pytest.fixture(scope="module")
def round_of_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round whose classifier calls some frames of noise each class."""
    recipe = load_recipe("finetune", "esc10_events", ["data=/unused", *SMALL])
    task = Objective(recipe, 3, -4.0, 4.0, 0, torch.device("cpu"), LABELS)
    generator = torch.Generator().manual_seed(1)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    folder = tmp_path_factory.mktemp("round")
    waveform = soundfile.read(noise(folder / "noise.wav", 4.0), dtype="int16")[0]
    _, found = task.frames(packed([waveform], replace(evaluation_policy(recipe), packs=1, clips=1)))
    with torch.no_grad():
        task.model.head.linear.bias -= found["probability"].logit().mean(0)
    return leave_round(folder / "run", recipe, task.model, task.described())


def noise(path: Path, seconds: float) -> Path:
    random = np.random.default_rng(0)
    loud = 0.02 + 0.2 * (np.arange(round(16000 * seconds)) // 6400 % 3)
    soundfile.write(path, loud * random.normal(size=len(loud)), 16000, subtype="PCM_16")
    return path


def test_events_are_runs_of_frames() -> None:
    times = np.array([0.0, 0.1, 0.3, 0.5, 0.7])
    spans = found_events(np.array([[0.9, 0.1], [0.6, 0.1], [0.2, 0.8], [0.7, 0.4]], np.float32), times)
    assert [(one.start, one.end) for one in spans] == [(0.0, 0.3), (0.3, 0.5), (0.5, 0.7)]
    assert [one.top(5) for one in spans] == [[0], [1], [0]]  # the other classes are not shown
    assert spans[0].probabilities[0] == pytest.approx(0.75)
    assert found_events(np.full((4, 2), 0.4, np.float32), times) == []


def test_thresholds_of_clips_are_none_of_frames(round_of_frames: Path, tmp_path: Path, capsys) -> None:
    opened = load(round_of_frames, device="cpu")
    about = {"labels": LABELS, "normalise": {"mean": -4.0, "std": 4.0}, "thresholds": [0.4, 0.5, 0.6]}
    folder = leave_round(tmp_path / "run", opened.recipe, opened.network, about)
    words = [str(folder), str(noise(tmp_path / "noise.wav", 2.0)), "--least", "chosen", "--format", "csv"]
    assert main(words) == 2
    assert "are of whole clips, not of the frames" in capsys.readouterr().err
    assert main([*words, "--every", "1"]) == 0
    assert "thresholds: of each class" in capsys.readouterr().err


def test_thresholds_of_frames_that_were_chosen_decide_events_also_of_what_is_exported(
    round_of_frames: Path, tmp_path: Path, capsys
) -> None:
    opened = load(round_of_frames, device="cpu")
    sound = noise(tmp_path / "noise.wav", 4.0)
    with Recording(sound) as recording:
        (frames,) = opened.tag([recording])
    limits = [0.45, 0.5, 0.6]
    about = metadata_of(round_of_frames / "best.safetensors") | {"frame_thresholds": limits}
    folder = leave_round(tmp_path / "run", opened.recipe, opened.network, about)
    assert export([str(folder / "best.safetensors"), "--to", "safetensors", str(tmp_path / "out")]) == 0
    assert "| threshold of a frame |" in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    words = [str(sound), "--least", "chosen", "--format", "csv", "--device", "cpu"]
    assert main([str(folder / "best.safetensors"), *words]) == 0
    first, said = capsys.readouterr()
    assert "thresholds: of the frames of each class's events, as chosen on validation clips, 0.45 to 0.6" in said
    assert main([str(tmp_path / "out"), *words]) == 0
    assert capsys.readouterr().out == first
    model = load(tmp_path / "out", device="cpu")
    with Recording(sound) as recording:
        (tagged,) = model.tag([recording])
    wanted = {0: 0, 1: 0, 2: 0}
    for span in tagged.spans:
        (label,) = span.top(3)
        wanted[label] += 1
        assert span.probabilities[label] >= limits[label]
    plain = [span.top(3)[0] for span in frames.spans]
    assert wanted[1] == plain.count(1)
    assert [wanted[0], wanted[2]] != [plain.count(0), plain.count(2)]
    assert len(first.splitlines()) == 1 + len(tagged.spans)


def test_a_run_tags_what_its_frames_say(round_of_frames: Path, tmp_path: Path) -> None:
    model = load(round_of_frames, device="cpu")
    assert isinstance(model, Events)
    with Recording(noise(tmp_path / "noise.wav", 4.0)) as recording:
        (tagged,) = model.tag([recording])
        (whole,) = model.tag([recording], every=4.0)
        waveform = np.rint(np.concatenate(list(recording.blocks())) * 32768).astype(np.int16)
    recipe = model.recipe
    task = Objective(recipe, 3, -4.0, 4.0, 0, torch.device("cpu"), LABELS)
    task.model.load_state_dict(model.network.state_dict())
    policy = replace(evaluation_policy(recipe), packs=1, clips=1)
    _, found = task.frames(packed([waveform], policy))
    frames = smoothed(found["probability"].numpy(), recipe.finetune.median_frames)
    wanted = found_events(frames, edges(len(found["row"]), 160, 1, 16, len(waveform)))
    assert len(tagged.spans) > 1
    assert [(a.start, a.end) for a in tagged.spans] == [(b.start, b.end) for b in wanted]
    for span in tagged.spans:
        assert len(span.top(5)) == 1
        assert 0 <= span.start < span.end <= 4.0
    assert len(whole.spans) == 1
    assert len(whole.spans[0].top(5)) == 3  # tags, as of any other model


def test_an_event_goes_over_the_cuts_of_a_long_recording(tmp_path: Path) -> None:
    recipe = load_recipe("finetune", "esc10_events", ["data=/unused", *SMALL])
    network = ClassifierNetwork(recipe.model, 3, seed=0)
    with torch.no_grad():
        network.head.linear.weight.zero_()
        network.head.linear.bias.copy_(torch.tensor([-2.0, 2.0, -2.0]))
    model = Events(network, recipe, -4.0, 4.0, LABELS)
    told: list[float] = []
    with Recording(noise(tmp_path / "long.wav", 65.0)) as recording:
        (tagged,) = model.tag([recording], heard=told.append)
    assert [(one.start, one.end, one.top(1)) for one in tagged.spans] == [(0.0, 65.0, [1])]
    assert tagged.spans[0].probabilities[1] == pytest.approx(float(torch.tensor(2.0).sigmoid()))
    assert sum(told) == pytest.approx(65.0)


def test_events_as_typed(round_of_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = noise(tmp_path / "noise.wav", 4.0)
    assert main([str(round_of_frames), str(sound), "--format", "json", "--device", "cpu"]) == 0
    (content,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert content["spans"]
    name = content["spans"][0]["tags"][0]["label"]
    for span in content["spans"]:
        assert len(span["tags"]) == 1
        assert span["tags"][0]["probability"] >= 0.5
    assert main([str(round_of_frames), str(sound), "--format", "csv", "--classes", name, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines
    assert all(line.split(",")[3] == name for line in lines)
