"""What a module outside of the package registers is there by its name, in commands that GAMUT_PLUGINS tells of it.

Each test writes such a module, one file, and trains, scores or encodes with what it registers.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from gamut.data.reader import open_reader
from gamut.features import FeatureCache
from gamut.shards import Index
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.run import convert
from launchers.corpus import synthesise
from tests import warm
from tests.close import assert_close

ROOT = Path(__file__).resolve().parents[1]
TINY = ["model.dim=16", "model.depth=2", "model.heads=2", "step.packs=2", "epochs=2", "loader.workers=1"]
TINY += ["track.mlflow=off", "track.picture_epochs=0", "run.threads=1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    convert("esc50", Esc50().list(synthesise(folder / "corpus", 30, seconds=0.5)), folder / "shards")
    subprocess.run([sys.executable, "-m", "gamut.shards", "stats", str(folder / "shards")], cwd=ROOT, check=True)
    return folder / "shards"


def call(tmp_path: Path, plugin: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the clone with `plugin`, the text of a module, in a folder of the user's."""
    (tmp_path / "mine.py").write_text(plugin)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "GAMUT_PLUGINS": "mine", "DS_ACCELERATOR": "cpu"}
    program = sys.executable if FROM_NOTHING in plugin else warm.python()
    return subprocess.run(
        [program, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def finetune(shards: Path, tmp_path: Path, *words: str) -> list[str]:
    return [
        *("finetune/run.py", "esc10", f"data={shards}", f"run.folder={tmp_path}", "run.name=x", "folds.test=[[5]]"),
        *("folds.train=[1,2]", "finetune.evaluate_epochs=1", *TINY, *words),
    ]


METRIC = """
import numpy as np
from gamut.evaluate import METRICS, Metric

def log_loss(target, logits):
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    likely = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-(target * likely).sum(1).mean())

METRICS.add("log loss", Metric("log loss", log_loss, higher_is_better=False, percent=False, one_label=True))
"""


def test_a_metric_from_outside_judges_a_fine_tuning(shards: Path, tmp_path: Path) -> None:
    done = call(tmp_path, METRIC, *finetune(shards, tmp_path, "finetune.metric=log loss", "epochs=3"))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("x/test-5-*")
    result = json.loads((folder / "result.json").read_text())
    with np.load(folder / "scores.npz") as scores:
        logits, target = scores["logits"].astype(np.float64), scores["target"]
    expected = -(target * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()
    assert result["metric"] == "log loss"
    assert math.isclose(result["score"], expected, rel_tol=1e-9)
    assert result["by_class"] == []
    assert "confusion" not in result
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    every = [line["test/log loss"] for line in logged if "test/log loss" in line]
    assert len(every) == 3
    assert result["best"]["score"] == min(every)  # of a loss the least
    assert f"log loss {expected:.4g} on test folds 5" in done.stdout
    assert "±" not in done.stdout  # one round has no spread


def test_a_metric_that_nobody_registers_is_refused_with_those_there_are(shards: Path, tmp_path: Path) -> None:
    done = call(tmp_path, METRIC, *finetune(shards, tmp_path, "finetune.metric=logloss"))
    assert done.returncode == 2
    assert (
        "finetune.metric on the command line must be auto, accuracy, mAP, AUC, lwlrap, top-5 or log loss, not 'logloss'"
        in done.stderr
    )


BACKBONE = """
import torch
from torch import nn
from gamut.models.backbone import BACKBONES, Backbone
from gamut.models.initialise import initialise, unfilled
from gamut.models.pooling import mean_pool

@BACKBONES.register("mixer")
class Mixer(Backbone):
    def __init__(self, model, seed=0):
        super().__init__(model)
        with unfilled():
            self.embed = nn.Linear(256, model.dim)
            self.blocks = nn.ModuleList(nn.Linear(model.dim, model.dim) for _ in range(model.depth))
        initialise(self, seed)

    def forward(self, patches, where, drop_keys=None):
        x = self.embed(patches.to(self.embed.weight.dtype))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x

    def pool(self, tokens, where):
        return mean_pool(tokens, where)
"""
MIXER = ["model.backbone=mixer", "model.pooling=mean"]


@pytest.mark.long
def test_a_backbone_from_outside_is_pretrained_probed_extracted_and_fine_tuned(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "pretrained"
    small = ["asit.prototypes=16", "asit.hidden=16", "asit.bottleneck=8", "views.frames=32", "optim.warmup_epochs=0"]
    words = ["asit_tiny", f"data={shards}", f"run.folder={tmp_path}", "run.name=pretrained", *TINY, *MIXER, *small]
    done = call(tmp_path, BACKBONE, "pretrain/run.py", *words, "probe.every_epochs=1")
    assert done.returncode == 0, done.stderr
    with safe_open(next(run.glob("checkpoints/step-*/objective.safetensors")), "pt") as file:
        trained = file.get_tensor("teacher.backbone.blocks.1.weight")
    assert trained.shape == (16, 16)

    done = call(tmp_path, BACKBONE, "-m", "gamut.probe", str(run), f"probe.data={shards}")
    assert done.returncode == 0, done.stderr
    scores = json.loads((run / "probe" / "scores.json").read_text())
    assert all("probe/linear/mean" in entry["scores"] for entry in scores)

    done = call(
        tmp_path, BACKBONE, "-m", "gamut.features", "extract", "asit_esc50", f"init={run}", f"data={shards}",
        f"extract.folder={tmp_path / 'features'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cache = FeatureCache(tmp_path / "features")
    assert (cache.info.layers, cache.info.dim, len(cache)) == (2, 16, 30)

    done = call(tmp_path, BACKBONE, *finetune(shards, tmp_path, f"init={run}", *MIXER))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("x/test-5-*")
    best = ["-m", "gamut.tag", str(folder), str(next((shards.parent / "corpus").rglob("*.wav")))]
    done = call(tmp_path, BACKBONE, *best)
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout


def test_a_backbone_that_is_none_is_refused(shards: Path, tmp_path: Path) -> None:
    text = "from torch import nn\nfrom gamut.models.backbone import BACKBONES\n"
    text += "BACKBONES.add('mixer', lambda model, seed: nn.Identity())\n"
    done = call(tmp_path, text, *finetune(shards, tmp_path, *MIXER))
    assert done.returncode == 2
    assert "model.backbone=mixer gives a Identity: derive it from gamut.models.backbone.Backbone" in done.stderr
    done = call(tmp_path, text, *finetune(shards, tmp_path, "model.backbone=mixr"))
    assert "model.backbone on the command line must be vit, beats or mixer, not 'mixr'" in done.stderr


ENCODER = """
import torch
from gamut.features.encoders import ENCODERS, Kind
from gamut.plan import Policy

class Loudness:
    depth, dim = 2, 3

    def __init__(self, path, recipe, device):
        self.gain = float(path.read_text())
        self.model = {"kind": "loudness", "gain": self.gain}
        self.front = {"kind": "waveform"}

    def policy(self, clips):
        return Policy(packs=1, clips=clips, crop_frames=1600, hops=(1,), random_crop=False, shuffle=False,
                      class_token=False)

    def __call__(self, batch, each):
        waveform = batch.waveform.view(batch.clips, -1)[:, :1600].float() / 32768
        loud = waveform.view(batch.clips, 4, 400).abs().mean(2, keepdim=True)
        for block in range(self.depth):
            each(block, self.gain * (block + 1) * loud.expand(-1, -1, self.dim))

ENCODERS.add("loudness", Kind(lambda path, recipe: path.suffix == ".gain", Loudness))
"""


def test_features_are_extracted_with_an_encoder_from_outside(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.gain").write_text("2.0")
    done = call(
        tmp_path, ENCODER, "-m", "gamut.features", "extract", "asit_esc50", f"init={tmp_path / 'mine.gain'}",
        f"data={shards}", f"extract.folder={tmp_path / 'features'}", "extract.pool=1", "extract.dtype=fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cache = FeatureCache(tmp_path / "features")
    assert (cache.info.layers, cache.info.steps, cache.info.dim, len(cache)) == (2, 4, 3, 30)
    index = Index.open(shards)
    samples = open_reader(index).decode(7)[:1600].astype(np.float32) / 32768
    expected = 2.0 * np.abs(samples).reshape(4, 400).mean(1)
    (found,) = cache.read(np.array([7]))
    assert expected.max() > 0
    assert_close(found[0], expected[:, None].repeat(3, 1), 1e-5)
    assert_close(found[1], 2 * found[0])


FROM_NOTHING = """
import sys
assert "deepspeed" not in sys.modules  # it reads the environment, before the ranks have started
"""
OBJECTIVE = """
from dataclasses import dataclass
import torch
from torch import nn
from gamut.audio.logmel import normalise, patches
from gamut.data.front import spectrogram
from gamut.models.backbone import build
from gamut.recipe.load import options_of
from gamut.registry import OBJECTIVES
from gamut.settings import at_least, key
from gamut.train.objective import Prepared, Pretraining

class Network(nn.Module):
    def __init__(self, model, seed):
        super().__init__()
        self.backbone = build(model, seed)
        self.head = nn.Linear(model.dim, 1)
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)

    def forward(self, patches, where):
        return self.head(self.backbone.pool(self.backbone(patches, where), where))[:, 0]

@dataclass(frozen=True)
class Options:
    weight: float = key(1.0, "of the loss", at_least(0))

@OBJECTIVES.register("loudness")
class Loudness(Pretraining):
    "Says how loud a crop is, a thing that any recording tells of itself."
    count_names = ("crops",)
    Options = Options

    def __init__(self, recipe, mean, std, device):
        self.options = options_of(recipe)
        self.mean, self.std, self.device = mean, std, device
        self.model = Network(recipe.model, recipe.seed).to(device)

    @property
    def backbone(self):
        return self.model.backbone

    def prepare(self, batch, at):
        batch = batch.to(self.device)
        clean = patches(normalise(spectrogram(batch, "fast", "silence"), self.mean, self.std))
        where = self.backbone.layout(batch.frames, batch.sizes)
        counts = torch.tensor([float(len(batch.frames))], dtype=torch.float64, device=self.device)
        loud = torch.stack([part.mean() for part in clean.split([size // 16 * 8 for size in batch.sizes])])
        return Prepared((clean, where, loud), counts)

    def loss(self, engine, prepared, totals, at):
        clean, where, loud = prepared.inputs
        loss = self.options.weight * (engine(clean, where) - loud).square().sum() / max(totals["crops"], 1.0)
        return loss, {"loss": loss.detach()}
"""


@pytest.mark.long
def test_an_objective_from_outside_is_pretrained_resumed_and_fine_tuned(shards: Path, tmp_path: Path) -> None:
    def pretrain(name: str, *words: str) -> tuple[Path, dict[str, np.ndarray]]:
        tiny = [*TINY, "objective=loudness", "options.weight=2", "views.frames=32", "optim.warmup_epochs=0", "epochs=3"]
        tiny += ["probe.every_epochs=0"]
        command = ["pretrain/run.py", "asit_tiny", f"data={shards}", f"run.folder={tmp_path}", f"run.name={name}"]
        plugin = FROM_NOTHING * (name == "whole") + OBJECTIVE
        done = call(tmp_path, plugin, *command, *tiny, "checkpoint.every_epochs=1", "checkpoint.keep=3", *words)
        assert done.returncode == 0, done.stderr
        newest = tmp_path / name / "checkpoints" / (tmp_path / name / "checkpoints" / "latest").read_text().strip()
        with safe_open(newest / "model.safetensors", "np") as file:
            return tmp_path / name, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    run, whole = pretrain("whole")
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if "loss" in line]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert np.abs(whole["head.weight"]).max() > 0  # which began at 0: it was trained

    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 3
    shutil.copytree(run, tmp_path / "again")  # as it stood after the first epoch
    for path in checkpoints[1:]:
        shutil.rmtree(tmp_path / "again" / "checkpoints" / path.name)
    (tmp_path / "again" / "checkpoints" / "latest").write_text(checkpoints[0].name)
    shutil.rmtree(run.parent / "again" / "plan", ignore_errors=True)
    _, resumed = pretrain("again")
    assert sorted(resumed) == sorted(whole)
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)

    done = call(tmp_path, OBJECTIVE, *finetune(shards, tmp_path, f"init={run}", "model.pooling=cls"))
    assert done.returncode == 0, done.stderr
    assert "(backbone.*)" in done.stdout


def test_an_objective_that_is_none_is_refused(shards: Path, tmp_path: Path) -> None:
    text = "from gamut.registry import OBJECTIVES\nOBJECTIVES.add('loudness', lambda *all: 1)\n"
    words = ["pretrain/run.py", "asit_tiny", f"data={shards}", f"run.folder={tmp_path}", "run.name=none", *TINY]
    done = call(tmp_path, text, *words, "objective=loudness")
    assert done.returncode == 2
    assert "objective=loudness gives a int: derive it from gamut.train.objective.Pretraining" in done.stderr
    done = call(tmp_path, text, *words, "options.weight=2")
    assert "The objective asit has no option weight (options on the command line); it has none." in done.stderr
    for typed, said in {
        "wait=2": "The objective loudness has no option wait (options on the command line); the nearest valid name is "
        "options.weight.",
        "weight=much": "options.weight on the command line must be a number, not 'much'.",
        "weight=-1": "options.weight on the command line must be at least 0, not -1.0.",
    }.items():
        done = call(tmp_path, OBJECTIVE, *words, "objective=loudness", f"options.{typed}", "--dry-run")
        assert done.returncode == 2
        assert said in done.stderr
    done = call(tmp_path, text, *words, "objective=loudnes")
    assert "objective on the command line must be asit or loudness, not 'loudnes'" in done.stderr
