"""Files that an earlier version wrote (tests/fixtures) still open, and give the numbers that they gave then.

Training goes on and is scored on other machines than those that made the files: there losses and weights are as equal
as after another split of a step. What is read and not computed is equal to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gamut.data.reader import Reader
from gamut.features import FeatureCache
from gamut.features.__main__ import main as features
from gamut.models.find import find_weights
from gamut.models.weights import load_weights
from gamut.probe.__main__ import main as probe
from gamut.recipe.resolved import read_resolved, recipe_hash
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.tag import Recording, load
from gamut.tag.__main__ import main as tag
from launchers.corpus import synthesise
from tests import warm

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
# What was typed when they were made (make.sh): a run goes on by the same command.
WORDS = ["data=shards", "run.folder=runs", "run.threads=1", "loader.workers=0", "track.mlflow=off"]
SMALL = ["demo", "loader.packs_per_forward=2", "step.packs=4", "step.clips=2", "model.dim=16", "model.depth=1"]
SMALL += ["model.heads=2", "model.table_frames=32", "views.frames=32", "optim.warmup_epochs=0.5"]
ASIT = [*SMALL, "subset.fold=[1,2,3,4]", "epochs=2", "asit.hidden=16", "asit.bottleneck=8", "asit.prototypes=16"]
ASIT += ["probe.every_epochs=0", "track.picture_epochs=0", "checkpoint.every_epochs=0", "checkpoint.keep=1"]
ENGINE = {"asit": [], "oss": ["engine=oss"], "zero3": ["deepspeed.zero_optimization.stage=3"]}
TUNED = [*SMALL, "init=runs/asit", "epochs=3", "folds.test=[[4]]", "finetune.evaluate_epochs=1", "checkpoint.keep=1"]
TUNED += ["optim.lr=1e-2", "optim.undecayed=vectors"]  # a recipe says the latter of class tokens and positions now
FOLDS = {"validated": ["folds.train=[1,2]", "folds.validation=[3]"], "last": ["folds.train=[1,2,3]"]}
HEAD = ["whisper_at_tltr512_esc50", "features=features/asit_esc50", "step.packs=2", "step.clips=4", "epochs=2"]
HEAD += ["finetune.average_from=1", "head.dim=16", "head.layer_heads=2", "folds.test=[[4]]", "folds.train=[1,2,3]"]
HEAD += ["checkpoint.keep=1", "precision=fp32"]


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "expected.safetensors")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the current folder, as their paths are relative to it."""
    folder = Path(shutil.copytree(FIXTURES, tmp_path / "old"))
    monkeypatch.chdir(folder)
    return folder


def run(*words: str) -> str:
    """Run `python ROOT/WORDS` in the current folder; returns what it printed."""
    line = [warm.python(), str(ROOT / words[0]), *words[1:], *WORDS]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def series(folder: Path, name: str) -> dict[int, float]:
    """A metric by step; the last attempt of a step wins."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_shard_set(old: Path, expected: dict) -> None:
    index = Index.open("shards")
    assert index.fingerprint == expected["fingerprint"]
    assert list(index.labels) == expected["labels"]
    assert list(index.statistics() or ()) == expected["statistics"]
    with Reader(index) as reader:
        found = {
            index.key(row): {
                "id": str(index.clip_id[row]),
                "labels": index.label_ids(row).tolist(),
                "fold": int(index.columns["fold"][row]),
                "samples": int(index.samples[row]),
                "crc32": zlib.crc32(reader.decode(row).tobytes()),
            }
            for row in range(len(index))
        }
    assert found == expected["clips"]
    assert shards(["verify", "shards"]) == 0
    assert shards(["index", "shards"]) == 0  # made again from the tars
    assert Index.open("shards").fingerprint == expected["fingerprint"]


HASHES = {"asit": "94ec67665f83dbc1", "oss": "ca37a62c842d80b5", "zero3": "961d8bed3e0b51b4"}  # as they were tracked


@pytest.mark.parametrize("name", HASHES)
def test_a_recipe_has_the_hash_that_it_had(name: str) -> None:
    """Keys that have come since then count only where they are used."""
    recipe = read_resolved(FIXTURES / "runs" / name / "recipe.yaml")
    assert recipe_hash(recipe) == HASHES[name]
    assert recipe_hash(replace(recipe, options={"weight": 1.0})) != HASHES[name]


@pytest.mark.parametrize("name", ["asit", "oss", "zero3"])
def test_a_pretraining_goes_on_to_its_end(
    old: Path, name: str, expected: dict, tensors: dict[str, torch.Tensor]
) -> None:
    printed = run("pretrain/run.py", *ASIT, *ENGINE[name], f"run.name={name}")
    assert "resuming after step 4, epoch 1 of 2" in printed
    losses = series(old / "runs" / name, "loss")
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert list(losses.values()) == pytest.approx(expected["losses"][name], rel=1e-6)
    lr = max(series(old / "runs" / name, "lr").values())
    folder = old / "runs" / name / "checkpoints" / "step-00000006"
    for file in ("model", "objective"):
        found = load_file(folder / f"{file}.safetensors")
        assert {f"{file}.{key}" for key in found} <= set(tensors)
        for key, value in found.items():
            difference = (value - tensors[f"{file}.{key}"]).abs()
            if key.endswith("attn.qkv.bias"):  # the key bias has no true gradient: Adam amplifies its rounding
                difference = torch.cat([difference[:16], difference[32:]])
            assert difference.max() <= 0.02 * lr, key


def test_fine_tuning_begins_with_a_pretraining(old: Path) -> None:
    run("finetune/run.py", *TUNED, *FOLDS["last"], "run.name=again")
    before, after = (old / "runs" / name / "test-4-seed-0" for name in ("last", "again"))
    losses = series(before, "loss")
    assert len(losses) == 9
    assert series(after, "loss") == pytest.approx(losses, rel=1e-6)
    with np.load(before / "scores.npz") as one, np.load(after / "scores.npz") as other:
        assert np.abs(one["logits"] - other["logits"]).max() <= 1e-5 * np.abs(one["logits"]).max()


def test_a_fine_tuning_that_is_finished_is_taken_as_it_is(old: Path) -> None:
    folder = old / "runs" / "validated" / "test-4-seed-0"
    kept = {path: path.read_bytes() for path in (folder / "metrics.jsonl", folder / "result.json")}
    summary = json.loads((folder.parent / "summary.json").read_text())
    run("finetune/run.py", *TUNED, *FOLDS["validated"], "run.name=validated")
    assert {path: path.read_bytes() for path in kept} == kept
    again = json.loads((folder.parent / "summary.json").read_text())
    assert {key: again[key] for key in summary} == summary


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("validated", "best.safetensors, epoch 1, chosen on validation folds 3"),
        ("last", "step-00000009/model.safetensors, last epoch 3 (no validation folds)"),
    ],
)
def test_tags_are_those_of_the_epoch_that_validation_chose_else_the_last(
    old: Path, expected: dict, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sounds").mkdir()
    with tarfile.open("shards/shard-000002.tar") as tar:
        for member in tar:
            Path("sounds", member.name).write_bytes(tar.extractfile(member).read())
    model = load(f"runs/{name}")
    for key, wanted in expected["tags"][name].items():
        with Recording(f"sounds/{key}.flac") as recording:
            (tagged,) = model.tag([recording])
        assert list(tagged.labels) == expected["labels"]
        assert np.abs(tagged.spans[0].probabilities - wanted).max() <= 1e-6
    assert tag([f"runs/{name}", "sounds/4-100018-A-0.flac"]) == 0
    assert f"weights: runs/{name}/test-4-seed-0/" in (printed := capsys.readouterr().err)
    assert said in printed


def another_set(place: Path) -> None:
    """Put other clips where the runs' set was; that goes to `moved`."""
    place.rename(place.with_name("moved"))
    assert shards(["convert", "esc50", str(synthesise(place.with_name("others"), 12, seconds=0.3)), str(place)]) == 0
    assert Index.open(place).statistics() != Index.open(place.with_name("moved")).statistics()


EXTRACT = ["extract", "asit_esc50", "init=runs/asit", "extract.seconds=0.4", "run.threads=1", "loader.workers=0"]


@pytest.mark.long
def test_a_pretraining_takes_its_statistics_from_the_set_that_it_was_trained_on(
    old: Path, expected: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files do not hold them. They are not those of another set at its path: that is refused, until once it is said
    where its own is."""
    another_set(Path("shards"))
    assert features([*EXTRACT, "data=shards", "extract.folder=others"]) == 2
    assert expected["fingerprint"] in (said := capsys.readouterr().err)
    assert "data=FOLDER" in said
    assert probe(["runs/asit", "probe.data=shards", "--out", "probed", "loader.workers=0"]) == 2
    assert expected["fingerprint"] in capsys.readouterr().err
    assert probe(["runs/asit", "data=moved", "probe.neighbours=5", "--out", "probed", "loader.workers=0"]) == 0
    assert "step-00000004/objective.safetensors, after epoch 1.333 of 2, the teacher" in capsys.readouterr().out
    scores = json.loads(Path("probed/scores.json").read_text())
    for entry, wanted in zip(scores, expected["probe"], strict=True):
        assert entry["scores"] == pytest.approx(wanted["scores"], abs=1.5 / 24)
    assert features([*EXTRACT, "data=shards", "extract.folder=others"]) == 0
    front = FeatureCache("others/asit_esc50").info.front
    assert [front["mean"], front["std"]] == expected["statistics"]


@pytest.mark.long
def test_weights_that_are_written_now_say_what_they_are_of(old: Path, expected: dict) -> None:
    """Whatever set is at the path of the recipe, and wherever the files are taken."""
    run("pretrain/run.py", *ASIT, "run.name=asit")
    run("finetune/run.py", *TUNED, *FOLDS["last"], "run.name=again", "epochs=1")
    run("finetune/run.py", *HEAD, "run.name=heads")
    mean, std = expected["statistics"]
    tuned, heads = (Path("runs", name, "test-4-seed-0") for name in ("again", "heads"))
    of_sound = [Path("runs/asit/checkpoints/step-00000006/objective.safetensors"), find_weights(tuned)]
    for file in (*of_sound, of_sound[0].with_name("model.safetensors"), tuned / "best.safetensors"):
        about = load_weights(file)[1]
        assert about["normalise"] == {"mean": mean, "std": std}
        assert about["front"]["mode"] == "fast"
        assert about["model"]["dim"] == 16
        assert about.get("labels", expected["labels"]) == expected["labels"]
        assert ("labels" in about) == ("asit" not in file.parts)
    for file in (find_weights(heads), heads / "best.safetensors"):
        about = load_weights(file)[1]
        assert about["labels"] == expected["labels"]
        assert about["encoder"]["front"]["mean"] == mean
    another_set(Path("shards"))
    assert features([*EXTRACT, "data=shards", "extract.folder=others"]) == 0
    front = FeatureCache("others/asit_esc50").info.front
    assert [front["mean"], front["std"]] == [mean, std]
    asked = ["runs/asit", "probe.data=moved", "probe.neighbours=5", "loader.workers=0", "--out", "probed"]
    assert probe(asked) == 0
    with_another = Path("probed/scores.json").read_text()
    shutil.rmtree("shards")
    Path("moved").rename("shards")
    assert probe([word.replace("moved", "shards") for word in asked]) == 0
    assert Path("probed/scores.json").read_text() == with_another


def test_a_cache_of_features_and_a_head_on_it(old: Path, tensors: dict[str, torch.Tensor]) -> None:
    wanted = tensors["features"].numpy()
    cache = FeatureCache("features/asit_esc50")
    assert np.array_equal(cache.read(range(24)), wanted)
    assert features(["verify", "features/asit_esc50"]) == 0
    words = ["extract", "asit_esc50", "init=runs/asit", "data=shards", "extract.seconds=0.4", "extract.dtype=fp32"]
    words += ["run.threads=1", "loader.workers=0"]
    made = {path: path.stat().st_mtime_ns for path in old.glob("features/**/*.safetensors")}
    assert features([*words, "extract.folder=features"]) == 0
    after = {path: path.stat().st_mtime_ns for path in old.glob("features/**/*.safetensors")}
    assert after == made  # of the same pretraining: the same address, and nothing to do
    assert features([*words, "extract.folder=again"]) == 0
    again = FeatureCache("again/asit_esc50")
    assert again.info.fingerprint == cache.info.fingerprint
    # Made by another processor, whose log-mels differ by up to 1e-4 of a spread of some 8.
    assert np.abs(again.read(range(24)) - wanted).max() <= 3e-5 * np.abs(wanted).max()
    head = old / "runs" / "head" / "test-4-seed-0"
    losses = series(head, "loss")
    run("finetune/run.py", *HEAD, "run.name=again")
    assert series(old / "runs" / "again" / "test-4-seed-0", "loss") == pytest.approx(losses, rel=1e-6)


@pytest.mark.long
def test_a_probe_of_a_pretraining(old: Path, expected: dict) -> None:
    assert probe(["runs/asit", "probe.neighbours=5", "--out", "probed", "loader.workers=0"]) == 0
    scores = json.loads(Path("probed/scores.json").read_text())
    assert [entry["step"] for entry in scores] == [entry["step"] for entry in expected["probe"]]
    for entry, wanted in zip(scores, expected["probe"], strict=True):
        assert entry["scores"] == pytest.approx(wanted["scores"], abs=1.5 / 24)  # of 24 clips one may be at a border
