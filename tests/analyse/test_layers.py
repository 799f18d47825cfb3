"""Probes of every layer: where a class can be told, and the command's table and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gamut.analyse.__main__ import main
from gamut.analyse.layers import class_f1, probe_layers
from gamut.features import write_cache
from gamut.shards import Index
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.run import convert
from launchers.corpus import CLASSES, synthesise
from tests.close import assert_close

LAYERS, STEPS, DIM = 3, 5, 8


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("layers")
    convert("esc50", Esc50().list(synthesise(folder / "corpus", 60, seconds=0.2)), folder / "shards")
    return Index.open(folder / "shards")


def features(index: Index) -> np.ndarray:
    """Layer 0 knows nothing, layer 1 every class but the first, layer 2 the first class only."""
    random = np.random.default_rng(0)
    x = random.normal(scale=0.2, size=(len(index), LAYERS, STEPS, DIM))
    for row in range(len(index)):
        label = int(index.label_ids(row)[0])
        x[row, 1, :, label] += 3.0 * (label != 0)
        x[row, 2, :, 0] += 3.0 * (label == 0)
    return x


def test_a_layer_scores_by_what_it_knows(index: Index) -> None:
    target = np.eye(len(CLASSES), dtype=bool)[[int(index.label_ids(row)[0]) for row in range(len(index))]]
    fold = np.asarray(index.columns["fold"]) - 1
    told: list[tuple[int, float]] = []
    found = probe_layers(
        "toy", features(index).mean(2), target, fold, index.labels, (0, 1, 2), lambda *one: told.append(one)
    )
    assert (found.metric, found.blocks, len(found.scores)) == ("accuracy", [0, 1, 2], LAYERS)
    assert told == list(enumerate(found.scores))
    assert found.scores[1] > 0.95  # what is no other class is the first
    assert found.scores[0] < 0.4
    assert found.scores[0] < found.scores[2] < found.scores[1]
    assert set(found.best.tolist()) == {1} or found.best[0] in (1, 2)
    assert np.asarray(found.f1)[2, 0] > 0.95


def test_f1_of_several_labels_a_clip_is_of_those_above_even_odds() -> None:
    target = np.array([[1, 1], [1, 0], [0, 1]], bool)
    logits = np.array([[2.0, -1.0], [1.0, -1.0], [3.0, 1.0]])
    assert_close(class_f1(target, logits, one_class=False), [2 * 2 / (2 * 2 + 1), 2 * 1 / (2 * 1 + 1)])


def test_the_command_writes_a_table_and_pictures(index: Index, tmp_path: Path, capsys) -> None:
    x = features(index)
    for name, some in (("deep", x), ("shallow", x[:, :2])):
        write_cache(tmp_path / name, some, index.clip_id, keys=index.keys(), index=index.fingerprint)
    line = ["layers", str(index.folder), str(tmp_path / "deep"), str(tmp_path / "shallow")]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert [one["name"] for one in content["encoders"]] == ["deep", "shallow"]
    assert len(content["encoders"][0]["best"]) == len(CLASSES)
    table = (tmp_path / "out" / "layers.md").read_text()
    assert "| layer | deep, accuracy | shallow, accuracy |" in table
    assert table.count("\n| 3 | ") == 1
    assert table.strip() in capsys.readouterr().out
    for picture in ("layers.png", "best_layers.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5_000


def test_what_cannot_be_probed_is_said(index: Index, tmp_path: Path, capsys) -> None:
    x = features(index)
    write_cache(tmp_path / "other", x, index.clip_id, keys=index.keys(), index="another")
    assert main(["layers", str(index.folder), str(tmp_path / "other")]) == 2
    assert "index another" in capsys.readouterr().err
    write_cache(tmp_path / "one", x, index.clip_id, keys=index.keys(), index=index.fingerprint)
    assert main(["layers", str(index.folder), str(tmp_path / "one"), str(tmp_path / "other")]) == 2
    assert "layer 1" not in capsys.readouterr().out  # before the first of them is measured
    assert main(["layers", str(index.folder), str(tmp_path / "one"), "--folds", "absent"]) == 2
    assert "no column absent" in capsys.readouterr().err
    assert main(["layers", str(index.folder), str(tmp_path / "one"), "--names", "a,b"]) == 2
    assert "2 names for 1" in capsys.readouterr().err
