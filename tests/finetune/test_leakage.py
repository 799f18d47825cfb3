"""How many of the scored clips the weights behind `init` were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.start import Leakage, leakage_of
from gamut.models.vit import VisionTransformer
from gamut.models.weights import save_weights
from gamut.recipe import schema
from gamut.shards import Index
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.run import convert
from gamut.train.trained_on import write_list
from launchers.corpus import synthesise


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("leakage")
    convert("esc50", Esc50().list(synthesise(folder / "corpus", 30, seconds=0.2)), folder / "shards")
    return Index.open(folder / "shards")


def test_clips_of_the_pretraining_are_counted(index: Index, tmp_path: Path) -> None:
    test = index.table().select(index.where({"fold": [3, 4]}))
    weights = tmp_path / "run" / "checkpoints" / "step-1" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    assert leakage_of("", index, test) == Leakage()
    assert leakage_of(str(weights), index, test) == Leakage()  # no run around it
    note = tmp_path / "run" / "recipe.yaml"
    for subset, seen in (("{fold: [1, 2, 3]}", 6), ("{fold: [1, 2]}", 0), ("{}", 12)):
        note.write_text(f"data: {index.folder}\nsubset: {subset}\n")
        assert leakage_of(str(weights), index, test) == Leakage(seen)
    note.write_text("data: /elsewhere\nsubset: {}\n")
    assert leakage_of(str(weights), index, test) == Leakage()


def test_clips_of_all_runs_behind_the_weights_are_counted(index: Index, tmp_path: Path) -> None:
    test = index.table().select(index.where({"fold": [3, 4]}))
    first, second = tmp_path / "first", tmp_path / "second"
    for run, subset, init in ((first, [1, 3], second), (second, [2], first), (tmp_path / "third", [4], first)):
        run.mkdir()
        (run / "recipe.yaml").write_text(f"data: {index.folder}\nsubset: {{fold: {subset}}}\ninit: {init}\n")
    assert leakage_of(str(tmp_path / "third"), index, test) == Leakage(12)
    assert leakage_of(str(second), index, test) == Leakage(6)  # they name each other


def test_an_exported_folder_says_what_its_weights_were_trained_on(index: Index, tmp_path: Path) -> None:
    """By the recordings: their shards may have been made anew, in another layout."""
    tuned, pretrained = tmp_path / "tuned", tmp_path / "pretrained"
    for run in (tuned, pretrained):
        run.mkdir()
    note = f"data: {index.folder}\nsubset: {{}}\nfolds: {{column: fold, train: [3]}}\n"
    (tuned / "recipe.yaml").write_text(f"{note}stage: finetune\ninit: {pretrained}\n")
    (pretrained / "recipe.yaml").write_text(f"data: {index.folder}\nsubset: {{fold: [3, 4]}}\n")
    exported = tmp_path / "exported"
    exported.mkdir()
    assert "12 clips that it was trained on, 6 of them with their labels" in write_list(tuned, exported)
    teacher = VisionTransformer(schema.Model(dim=16, depth=1, heads=2), seed=0).state_dict()
    save_weights(exported / "model.safetensors", {f"backbone.{name}": value for name, value in teacher.items()}, {})
    corpus = Esc50().list(index.folder.parent / "corpus")
    convert("esc50", corpus, tmp_path / "anew", clips_per_shard=7)
    anew = Index.open(tmp_path / "anew")
    assert anew.fingerprint != index.fingerprint
    for there in (index, anew):
        test = there.table().select(there.where({"fold": [2, 3]}))
        assert leakage_of(str(exported), there, test) == Leakage(6, labelled=True)
        test = there.table().select(there.where({"fold": [4, 5]}))
        assert leakage_of(str(exported), there, test) == Leakage(6)
    assert "they lie in no run" in write_list(tmp_path / "elsewhere", tmp_path)
    (pretrained / "recipe.yaml").write_text("data: /elsewhere\nsubset: {}\n")
    assert f"{pretrained} or its shards are not here" in write_list(tuned, tmp_path)
    assert not (tmp_path / "trained_on.npz").exists()


def test_clips_of_a_fine_tuning_are_counted_by_its_folds(index: Index, tmp_path: Path) -> None:
    """Of a run's folder alone, as a head's is; with their labels."""
    test = index.table().select(index.where({"fold": [3, 4]}))
    for train, seen in (("[1, 2, 3]", 6), ("[1, 2, 5]", 0)):
        folds = f"folds: {{column: fold, train: {train}}}"
        (tmp_path / "recipe.yaml").write_text(f"stage: finetune\ndata: {index.folder}\nsubset: {{}}\n{folds}\n")
        assert leakage_of(str(tmp_path), index, test) == Leakage(seen, labelled=True)
    assert "with their labels" in Leakage(6, True).told(12, "fold", (1, 2))
    assert "without their labels" in Leakage(6).told(12, "fold", (1, 2))
