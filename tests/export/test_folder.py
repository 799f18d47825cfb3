"""`gamut export --to safetensors`: a folder that is used like the run, wherever it is brought."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gamut.errors import CheckpointError, RecipeError
from gamut.export.__main__ import main
from gamut.features.encoders import load_encoder
from gamut.models.backbone import build
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import find_weights, metadata_of, recipe_of
from gamut.models.weights import load_backbone, load_classifier, load_weights, save_weights
from gamut.recipe import cli
from gamut.recipe.policy import evaluation_policy
from gamut.tag import Recording, load
from tests.tag.whispers import talking_whisper

from .models import CLASSES, MEAN, STD, a_classifier, a_head, a_pretraining


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning run that lay beside its data, and does not any more."""
    folder, _ = a_classifier(tmp_path_factory.mktemp("runs") / "tiny" / "test-5-seed-0", "data=/secret/shards")
    (folder / "run.json").write_text(json.dumps({"identity": "one", "attempt": 1}))
    start = {"attempt": 1, "time": 1.0, "event": "start", "index": "abc123"}
    speed = {"clips_per_second": 8.0, "tokens_per_second": 8 * 249.0, "seconds_per_step": 2.0, "padding_share": 0.25}
    lines = [start, *({"attempt": 1, "time": 2.0, "step": step, **speed} for step in (10, 20, 30))]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = {
        "test": [5],
        "metric": "accuracy",
        "score": 0.625,
        "metrics": {"accuracy": 0.625},
        "clips": 80,
        "selected": "last epoch",
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder.parent


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("out") / "exported" / "tiny"
    assert main([str(run), "--to", "safetensors", str(made)]) == 0
    return made


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 44100 * 6), 44100, "PCM_16")
    return path


def test_it_tags_as_the_run_does(run: Path, folder: Path, sound: Path, tmp_path: Path) -> None:
    far = shutil.copytree(folder, tmp_path / "far")
    for place in (folder, far, far / "model.safetensors"):
        mine, theirs = load(run), load(place)
        with Recording(sound) as recording:
            (one,), (other,) = mine.tag([recording]), theirs.tag([recording])
        assert other.labels == tuple(CLASSES)
        assert [span.end for span in one.spans] == [span.end for span in other.spans]
        for span, same in zip(one.spans, other.spans, strict=True):
            assert (span.probabilities == same.probabilities).all()


def test_the_file_says_all_that_is_needed_and_no_place(run: Path, folder: Path) -> None:
    about, recipe = metadata_of(find_weights(folder)), recipe_of(find_weights(folder))
    assert about["labels"] == CLASSES
    assert about["normalise"] == {"mean": MEAN, "std": STD}
    assert recipe is not None
    theirs = recipe_of(find_weights(run))
    assert theirs is not None
    assert recipe.model == theirs.model
    assert evaluation_policy(recipe) == evaluation_policy(theirs)
    for path in folder.iterdir():
        for place in (b"/secret", str(run).encode()):
            assert place not in path.read_bytes(), path


def test_it_is_an_init_bit_for_bit(run: Path, folder: Path) -> None:
    recipe = recipe_of(find_weights(run))
    assert recipe is not None
    whole, backbone = ClassifierNetwork(recipe.model, len(CLASSES), 7), build(recipe.model, 7)
    load_classifier(whole, folder)
    load_backbone(backbone, folder)
    saved = load_weights(find_weights(run))[0]
    for module, prefix in ((whole, ""), (backbone, "backbone.")):
        for name, value in module.state_dict().items():
            assert torch.equal(value, saved[prefix + name]), name


def test_the_teacher_of_a_pretraining_goes_out_and_encodes(tmp_path: Path) -> None:
    run, _ = a_pretraining(tmp_path / "run", "front.mean=-6.0", "front.std=4.0")
    for place, out in ((run, "a"), (run / "checkpoints" / "step-00000010", "b")):
        assert main([str(place), str(tmp_path / out), "--to", "safetensors"]) == 0
    one, other = (load_weights(tmp_path / name / "model.safetensors")[0] for name in "ab")
    teacher = load_weights(run / "checkpoints" / "step-00000010" / "objective.safetensors")[0]
    assert {name for name in one if torch.equal(one[name], other[name])} == set(one)
    assert {f"teacher.{name}" for name in one} == set(teacher)
    assert all(torch.equal(one[name], teacher[f"teacher.{name}"]) for name in one)
    words = ["asit_esc50", "data=nowhere", "extract.seconds=1"]
    encoders = [
        load_encoder(cli.parse("features", [*words, f"init={place}"]).recipe, torch.device("cpu"))
        for place in (run, tmp_path / "a")
    ]
    assert encoders[0].model == encoders[1].model
    assert encoders[0].front == encoders[1].front
    with pytest.raises(CheckpointError, match="of a pretraining, has no classes: fine-tune"):
        load(tmp_path / "a")


def test_the_card_tells_the_story(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    # 3 lines of 10 steps of 16 clips; a clip has 248 patches, 31 columns of 16 frames, three quarters of them sound
    hours = 480 * 31 * 0.16 * 0.75 / 3600
    for words in (
        "license: unknown",
        "fingerprint abc123",
        f"480 clips, {hours:.4g} hours",
        "On 80 clips of the test folds 5 (column fold); epoch: last epoch.",
        "| accuracy | 0.625 |",
        "| 2 | Siren, of a ship |",
        "mean -6 and deviation 4",
        "dim: 48",
        'load("tiny")',
    ):
        assert words in card, card


@pytest.mark.parametrize("kind", ["classifier", "backbone", "head", "head alone"])
def test_the_cards_code_runs_beside_the_folder(
    kind: str, folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = folder if kind == "classifier" else tmp_path / "made"
    if kind != "classifier":
        words = ["--backbone"] if kind == "backbone" else []
        words += ["--encoder", str(talking_whisper(tmp_path / "whisper"))] if kind == "head" else []
        of = run if kind == "backbone" else a_head(tmp_path / "run")[0]
        assert main([str(of), "--to", "safetensors", str(made), *words]) == 0
    (block,) = re.findall(r"```python\n(.*?)```", (made / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(made.parent)
    capsys.readouterr()
    exec(block, {})
    assert capsys.readouterr().out


def test_a_head_on_another_encoder_goes_out_by_itself_and_says_what_for(tmp_path: Path, capsys) -> None:
    run, head = a_head(tmp_path / "run")
    weights = find_weights(run)
    about = metadata_of(weights)
    about["encoder"]["model"]["kind"], about["encoder"]["name"] = "hubert", "hubert_base"
    save_weights(weights, head, about)
    assert main([str(run), "--to", "safetensors", str(tmp_path / "made")]) == 0
    assert "to go on training it (init=) on features of hubert: only one on a Whisper tags" in capsys.readouterr().err
    card = (tmp_path / "made" / "README.md").read_text()
    assert "Weights of a head on features of hubert that Gamut trained, for Gamut: `init=made`." in card
    assert "hisper" not in card.partition("## Training")[0]
    for to in ("onnx", "hf"):
        assert main([str(run), "--to", to, str(tmp_path / to)]) == 2
        assert "only a Whisper goes out with its head: --to safetensors (without --encoder)" in capsys.readouterr().err


def test_an_exported_head_has_no_text_without_the_whole_whisper(tmp_path: Path, capsys) -> None:
    whisper = talking_whisper(tmp_path / "whisper")
    words = ["--to", "safetensors", str(tmp_path / "made"), "--encoder", str(whisper)]
    assert main([str(a_head(tmp_path / "run")[0]), *words]) == 0
    with pytest.raises(
        RecipeError, match="with the encoder of its Whisper alone, which writes no text: name the whole"
    ):
        load(tmp_path / "made", text=True)
    load(tmp_path / "made", text=True, encoder=whisper)


def test_an_exported_folder_can_be_exported_again(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), "--to", "safetensors", str(tmp_path / "again")]) == 0
    for name in ("model.safetensors", "README.md"):
        one, other = (place / name for place in (folder, tmp_path / "again"))
        assert one.read_bytes() == other.read_bytes().replace(b"again", b"tiny"), name


def test_damage_shows(folder: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    content = bytearray((bad / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (bad / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load(bad)


def test_what_cannot_be_exported(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    save_weights(tmp_path / "bare.safetensors", build(cli.parse("pretrain", ["asit_tiny"]).recipe.model), {})
    young, _ = a_pretraining(tmp_path / "young")
    shutil.rmtree(young / "checkpoints")
    (young / "checkpoints").mkdir()
    for place, out, words in (
        (run, tmp_path / "full", "is not empty: name a new folder"),
        (run, tmp_path / "full" / "file", "is a file: name a new folder"),
        (tmp_path / "bare.safetensors", tmp_path / "x", "does not say of which model it is"),
        (tmp_path / "nothing", tmp_path / "x", "no such file or folder"),
        (young, tmp_path / "x", "has published no checkpoint yet"),
    ):
        assert main([str(place), str(out), "--to", "safetensors"]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_half_a_folder_is_none(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "file").touch()
    assert main([str(run), str(tmp_path / "file" / "a"), "--to", "safetensors"]) == 2
    assert "cannot be written" in capsys.readouterr().err

    def killed(path: Path, *_: object) -> None:
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("gamut.export.tensors.save_weights", killed)
    assert main([str(run), str(tmp_path / "a"), "--to", "safetensors"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
