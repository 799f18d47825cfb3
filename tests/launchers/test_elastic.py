"""The command behind the evidence for ElasticAST: which models it trains, on how much, and what it sweeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gamut.plan import plan_epoch
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import training_policy
from gamut.shards import Index
from launchers import elastic
from launchers.corpus import synthesise
from tests.shards.layouts import convert, sound


def lines(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> list[list[str]]:
    """What the command would run; conversions are done."""
    asked: list[list[str]] = []

    def run(console: object, *line: str) -> None:
        asked.append(list(line))
        if line[3:4] == ("convert",):
            assert convert(line[4], Path(line[5]), Path(line[6])) == 0

    monkeypatch.setattr(elastic, "run", run)
    assert elastic.main([*words, "--folder", str(folder), "--seeds", "2", "track.mlflow=off"]) == 0
    return asked


def planned(line: list[str]) -> tuple[int, int, int]:
    """(tokens, steps, epochs) of a training."""
    recipe = load_recipe("finetune", line[2], line[3:])
    index = Index.open(recipe.data)
    clips = index.table().select(index.where({recipe.folds.column: recipe.folds.train}))
    epochs = [plan_epoch(clips, recipe.seed, number, training_policy(recipe)) for number in range(recipe.epochs)]
    return sum(int(epoch.tokens.sum()) for epoch in epochs), sum(epoch.steps for epoch in epochs), recipe.epochs


@pytest.mark.parametrize("task", ["digits", "sounds"])
def test_models_are_trained_on_as_many_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str) -> None:
    if task == "digits":
        for speaker in ("ann", "bob"):
            for number in (0, 1, 10, 11):
                sound(tmp_path / "digits" / "one" / f"{speaker}_nohash_{number}.wav", 0.4, rate=8000, seed=number)
        words = [str(tmp_path / "digits"), "none", "--train", "40", "--test", "4"]
    else:
        synthesise(tmp_path / "sounds", 60, seconds=2.0)
        words = ["none", str(tmp_path / "sounds")]
    asked = lines(monkeypatch, tmp_path / "out", *words)
    assert [line[1:4] if line[1] == "-m" else line[1] for line in asked] == [
        ["-m", "gamut.shards", "convert"],
        *["finetune/run.py"] * 3,
        "finetune/sweep.py",
    ]
    tokens, steps, epochs = zip(*(planned(line) for line in asked[1:4]))
    assert np.ptp(tokens) <= 0.04 * max(tokens)
    assert np.ptp(steps) <= 0.1 * max(steps) + 1
    assert len(set(epochs)) == 1
    names = [word.removeprefix("run.name=") for line in asked[1:4] for word in line if word.startswith("run.name=")]
    assert [Path(word).name for word in asked[4][2:5]] == names
    assert all("finetune.seeds=2" in line and "track.mlflow=off" in line for line in asked[1:4])
