"""Exported models in the hands of others: transformers, timm, onnxruntime and torch, in a process without Gamut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from gamut.export.__main__ import main
from gamut.features.extract import pool
from gamut.models.backbone import build
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import find_weights
from gamut.models.tagger import Tagger, load_tagger
from gamut.models.vit import VisionTransformer
from gamut.models.weights import load_backbone, load_classifier, load_weights, save_weights
from gamut.models.whisper import Whisper, load_whisper
from gamut.recipe import schema
from gamut.tag import Recording, load
from gamut.tag.mels import short
from tests.close import assert_close
from tests.tag.whispers import DIM, talking_whisper

from .models import CLASSES, a_classifier, a_head, a_pretraining
from .reference import heard, sound

LENGTHS = (0.3, 1.0, 10.0, 30.0)
NEAR = 1e-4


class Jobs:
    """Exported folders, and what others must find in them."""

    def __init__(self, root: Path) -> None:
        self.root, self.jobs, self.arrays = root, [], {}  # type: ignore[var-annotated]

    def add(
        self, kind: str, name: str, run: Path, words: str, inputs: list[np.ndarray], expected: list[np.ndarray]
    ) -> None:
        assert main([str(run), "--to", *words.split(), str(self.root / name)]) == 0
        named = []
        for what, arrays in (("input", inputs), ("output", expected)):
            named.append([f"{name}-{what}-{number}" for number in range(len(arrays))])
            self.arrays |= dict(zip(named[-1], arrays))
        self.jobs.append({"kind": kind, "name": name, "inputs": named[0], "expected": named[1]})

    def run(self) -> dict[str, dict[str, Any]]:
        np.savez(self.root / "arrays.npz", **self.arrays)
        (self.root / "jobs.json").write_text(json.dumps(self.jobs))
        line = [sys.executable, "-I", str(Path(__file__).with_name("outside.py")), str(self.root)]
        done = subprocess.run(line, cwd="/", capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        return {one["name"]: one for one in json.loads(done.stdout.splitlines()[-1])}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """(root of the exported folders, what a process without Gamut found in each); beside the root are the runs."""
    root = tmp_path_factory.mktemp("outside")
    runs, jobs = root / "runs", Jobs(root / "exported")

    # AST as published: overlapping patches, two tokens, frames of 0.0 behind a clip that is short of the 512 frames.
    words = ["model.distilled=true", "model.stride=10", "step.tokens=2048", "model.table_frames=1024"]
    run, task = a_classifier(runs / "ast", *words, recipe="ast_esc10", trained=True)
    wave = sound(4.3)
    jobs.add("ast", "ast", run, "hf", [wave], [heard(task.model, task.recipe, wave)["logits"]])

    # Two tokens, positions of the one kind and attention's scale of the other, classes that may occur together.
    words = ["model.distilled=true", "model.positions=factorised", "model.attention_scale=0.4", "finetune.loss=bce"]
    run, task = a_classifier(runs / "many", *words, "model.table_frames=64")
    wave = sound(6.0)
    state, about = load_weights(find_weights(run))
    save_weights(find_weights(run), state, about | {"thresholds": [0.1, 0.2, 0.3, 0.4]})
    jobs.add("ast", "many", run, "hf", [wave], [heard(task.model, task.recipe, wave)["logits"]])

    # ASiT's backbone at its 592 frames.
    run, recipe = a_pretraining(
        runs / "asit", "model.table_frames=592", "views.frames=592", "model.attention_scale=0.3"
    )
    vit = build(recipe.model)
    load_backbone(vit, run)
    of = heard(vit, recipe, sound(6.0))
    jobs.add("vit", "asit", run, "hf", [of["mel"]], [of["tokens"]])
    jobs.add("timm", "asit_timm", run, "timm", [of["mel"]], [of["tokens"], of["embedding"]])

    # Any length: tables that are cut and stretched, attention pooling, and means of tokens.
    run, task = a_classifier(
        runs / "elastic", "model.table_frames=512", "views.resolutions=[1.0]", recipe="elastic_esc10", trained=True
    )
    waves = [sound(seconds) for seconds in LENGTHS]
    wanted = [heard(task.model, task.recipe, wave) for wave in waves]
    expected = [one[name] for one in wanted for name in ("logits", "embedding")]
    jobs.add("onnx", "elastic_onnx", run, "onnx", waves, expected)
    jobs.add("torch", "elastic_torch", run, "torch", waves, expected)
    whole = wanted[2]  # 10 s: 992 frames
    jobs.add("timm", "elastic_timm", run, "timm --backbone --seconds 10", [whole["mel"]], [whole["tokens"]] * 2)

    # A class token alone, one length, and a learned table that is longer.
    run, task = a_classifier(runs / "cls", "model.table_frames=1024")
    wanted = [heard(task.model, task.recipe, wave) for wave in waves]
    expected = [one[name] for one in wanted for name in ("logits", "embedding")]
    jobs.add("torch", "cls_torch", run, "torch", waves, expected)

    # A head on a Whisper, at windows of 4 s.
    run, head = a_head(runs / "head")
    whisper = load_whisper(talking_whisper(runs / "whisper"))
    expected = []
    for wave in waves:
        expected += of_a_head(whisper, head, wave, "zero")
    jobs.add("onnx", "head", run, f"onnx --encoder {runs / 'whisper'}", waves, expected)
    return jobs.root, jobs.run()


def of_a_head(whisper: Whisper, head: Tagger, wave: np.ndarray, pad_with: str) -> list[np.ndarray]:
    """Logits and embedding of a sound at a window of 4 s."""
    mel = short([wave[: 4 * 16000]], whisper.mels, 4.0, pad_with)
    with torch.no_grad():
        features = torch.stack([pool(block, 10) for block in whisper(mel).blocks], 1)
        return [head(features)[0].numpy(), head.embedding(features)[0].numpy()]


@pytest.mark.parametrize("pad_with", ["silence", "zero"])
def test_a_head_s_window_is_filled_up_as_in_its_training(pad_with: str, tmp_path: Path) -> None:
    from gamut.export.programs import listener
    from gamut.export.source import open_source

    run, head = a_head(tmp_path / "head", pad_with)
    place = talking_whisper(tmp_path / "whisper")
    network = listener(open_source(run, encoder=str(place)), None)
    for seconds in (0.01, 0.3, 3.999, 4.0, 5.0):
        wave = sound(seconds)
        for mine, wanted in zip(network(torch.from_numpy(wave)), of_a_head(load_whisper(place), head, wave, pad_with)):
            assert_close(mine.numpy(), wanted, 1e-4)


VITS = ["ast", "many", "asit", "asit_timm", "elastic_onnx", "elastic_torch", "elastic_timm", "cls_torch"]
NAMES = [*VITS, "head"]


@pytest.mark.parametrize("name", NAMES)
def test_others_get_the_same_numbers(made: tuple[Path, dict[str, dict[str, Any]]], name: str) -> None:
    root, found = made
    assert len(found) == len(NAMES)
    assert max(found[name]["apart"]) < NEAR, found[name]
    assert found[name]["said"], "the card's example printed nothing"
    assert "license: unknown" in (root / name / "README.md").read_text()


def test_classes_come_along(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    root, found = made
    for name, problem in (("ast", "single_label_classification"), ("many", "multi_label_classification")):
        about = found[name]["about"]
        assert list(about["id2label"].values()) == CLASSES
        assert about["problem_type"] == problem
    assert found["many"]["about"]["thresholds"] == [0.1, 0.2, 0.3, 0.4]
    assert json.loads((root / "elastic_onnx" / "labels.json").read_text()) == {"labels": CLASSES, "loss": "ce"}
    assert found["elastic_onnx"]["about"] == ["logits", "embedding"]


@pytest.mark.parametrize("name", VITS)
def test_every_folder_is_an_init(made: tuple[Path, dict[str, dict[str, Any]]], name: str) -> None:
    """A backbone of the exported model's own kind gets its weights back: the same tokens of the same sound."""
    from gamut.export.source import open_source

    folder = made[0] / name
    source = open_source(folder)
    vit = build(source.recipe.model, seed=5)
    loaded = load_backbone(vit, folder)
    assert not loaded.warning
    kept = [part for part in source.backbone.state_dict() if name != "elastic_timm" or not part.startswith("attn_pool")]
    assert set(loaded.fresh) == set(source.backbone.state_dict()) - set(kept)
    assert isinstance(vit, VisionTransformer)
    runs = {"asit_timm": "asit", "elastic_onnx": "elastic", "elastic_torch": "elastic", "elastic_timm": "elastic"}
    origin = open_source(made[0].parent / "runs" / runs.get(name, name.removesuffix("_torch")))
    recipe = source.recipe
    mine = heard(vit, recipe, sound(6.0))["tokens"]
    theirs = heard(origin.backbone, origin.at_length(len(heard(vit, recipe, sound(6.0))["mel"])), sound(6.0))["tokens"]
    assert abs(mine - theirs).max() < NEAR * abs(theirs).max()


@pytest.mark.parametrize("name", ["ast", "many", "elastic_onnx", "elastic_torch", "cls_torch"])
def test_every_classifier_tags_and_can_be_gone_on_with(made: tuple[Path, dict[str, dict[str, Any]]], name: str) -> None:
    from gamut.export.source import open_source

    folder = made[0] / name
    recipe = open_source(folder).recipe
    network = ClassifierNetwork(recipe.model, len(CLASSES), 3)
    load_classifier(network, folder)
    assert load(folder).labels == tuple(CLASSES)
    found = heard(network, recipe, sound(5.0))["logits"]
    origin = open_source(made[0].parent / "runs" / name.split("_")[0])
    assert isinstance(origin.network, ClassifierNetwork)
    wanted = heard(origin.network, origin.recipe, sound(5.0))["logits"]
    assert abs(found - wanted).max() < NEAR * abs(wanted).max()


def test_a_head_goes_out_with_its_encoder(made: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, capsys) -> None:
    root, _ = made
    runs = root.parent / "runs"
    soundfile.write(tmp_path / "a.wav", sound(6.0), 16000, "FLOAT")
    assert main([str(root / "head"), "--to", "safetensors", str(tmp_path / "again")]) == 0
    with Recording(tmp_path / "a.wav") as recording:
        (wanted,) = load(runs / "head", encoder=runs / "whisper").tag([recording], every=2.0)
        for folder in (root / "head", tmp_path / "again"):
            (found,) = load(folder).tag([recording], every=2.0)
            for mine, theirs in zip(found.spans, wanted.spans, strict=True):
                assert abs(mine.probabilities - theirs.probabilities).max() == 0
    tagger = Tagger(schema.Head(kind="tl_tr", dim=16, time_heads=2, layer_heads=2), 2, DIM, len(CLASSES), seed=7)
    load_tagger(tagger, root / "head")
    for name, value in load_weights(find_weights(runs / "head"))[0].items():
        assert torch.equal(tagger.state_dict()[name], value)
    assert b"/secret" not in (root / "head" / "model.safetensors").read_bytes()
    capsys.readouterr()
    for words, sentence in (
        (["--to", "hf"], "neither transformers nor timm has a class: --to onnx, torch and safetensors"),
        (["--to", "torch"], "a head without its encoder: name that with --encoder"),
        (["--to", "onnx", "--seconds", "3", "--encoder", str(runs / "whisper")], "leave --seconds out"),
    ):
        assert main([str(runs / "head"), *words, str(tmp_path / "x")]) == 2
        assert sentence in capsys.readouterr().err
    assert main([str(runs / "cls"), "--to", "onnx", "--encoder", "w", str(tmp_path / "x")]) == 2
    assert "is no head" in capsys.readouterr().err


def test_a_head_on_another_encoder_goes_out_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can hold it is the same sentence for every format, with and without an encoder."""
    run, head = a_head(tmp_path / "run")
    file = find_weights(run)
    state, about = load_weights(file)
    about["encoder"]["model"]["kind"] = "hubert"
    save_weights(file, state, about)
    for words in ("hf", "timm", "onnx", "torch", f"safetensors --encoder {tmp_path}", f"torch --encoder {tmp_path}"):
        assert main([str(run), "--to", *words.split(), str(tmp_path / "x")]) == 2
        said = capsys.readouterr().err
        assert "on the features of hubert, and only a Whisper goes out with its head: --to safetensors (without" in said
    assert main([str(run), "--to", "safetensors", str(tmp_path / "alone")]) == 0
    exported, _ = load_weights(find_weights(tmp_path / "alone"))
    for name, value in head.state_dict().items():
        assert torch.equal(exported[name], value), name


@pytest.mark.parametrize(
    ("recipe", "words", "to", "sentence"),
    [
        ("esc10", [], "hf", "this classifier's pooling is cls alone (model.distilled=false). --to onnx, torch and"),
        ("esc10", [], "timm", "one LayerNorm before its classifier"),
        ("esc10", ["model.distilled=true"], "timm --backbone", "has no distillation token"),
        ("esc10", ["model.stride=10"], "hf --backbone", "has patches 10 apart: --to onnx"),
        ("elastic_esc10", [], "hf --backbone --seconds 5", "has no class token: --to timm, onnx"),
        ("elastic_esc10", [], "timm --backbone", "say which with --seconds, such as --seconds 10"),
        ("esc10", ["model.distilled=true", "views.resolutions=[2.0]"], "hf", "20 ms apart"),
        ("esc10", ["model.norm=post"], "timm --backbone", "come after each sum (model.norm=post)"),
        ("esc10", [], "safetensors --seconds 3", "leave --seconds out"),
    ],
)
def test_what_a_format_cannot_hold(
    recipe: str, words: list[str], to: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = a_classifier(tmp_path / "run", *words, recipe=recipe)
    assert main([str(run), "--to", *to.split(), str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    run, _ = a_classifier(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main([str(run), "--to", "onnx", str(tmp_path / "out")]) == 2
    assert "In the clone: pip install '.[export]'" in capsys.readouterr().err


VARIANTS = [
    ("esc10", []),
    ("esc10", ["model.norm=post"]),
    ("esc10", ["model.pooling=mean", "model.positions=factorised", "model.table_frames=128"]),
    ("esc10", ["model.pooling=rows"]),
    ("elastic_esc10", ["model.pooling=frames", "finetune.loss=bce", "views.resolutions=[1.0]"]),
    ("ast_esc10", ["model.table_frames=1024"]),
    ("ast_esc10", ["model.table_frames=256", "model.stride=10", "step.tokens=2048"]),
    ("ast_esc10", ["views.frames=null", "views.pad_to=1024", "views.resolutions=[2.0]", "views.poolings=[2]"]),
    ("elastic_esc10", ["views.resolutions=[1.0]", "model.table_frames=256", "model.positions=learned"]),
    ("elastic_esc10", ["views.resolutions=[1.5]", "views.poolings=[3]"]),
    ("elastic_esc10", ["views.resolutions=[1.0]", "views.max_frames=96", "model.attention_scale=1.0"]),
    ("elastic_esc10", ["views.resolutions=[1.0]", "views.frames=256", "views.pad=false", "front.mode=exact"]),
]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [pytest.param(*one, marks=[pytest.mark.long] * (number % 3 != 2)) for number, one in enumerate(VARIANTS)],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "plain",
)
def test_the_network_that_is_traced_hears_what_an_evaluation_hears(
    recipe: str, words: list[str], tmp_path: Path
) -> None:
    from gamut.export.programs import listener
    from gamut.export.source import open_source

    run, task = a_classifier(tmp_path / "run", *words, recipe=recipe)
    network = listener(open_source(run), None)
    for seconds in (0.001, 0.3, 4.99, 33.0):
        wave = sound(seconds)
        wanted = heard(task.model, task.recipe, wave)
        for name, mine in zip(("logits", "embedding", "frames"), network(torch.from_numpy(wave))):
            assert abs(mine.numpy() - wanted[name]).max() < 2e-5 * abs(wanted[name]).max(), (name, seconds)
