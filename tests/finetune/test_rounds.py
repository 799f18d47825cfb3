"""Rounds of fine-tuning, what the pretraining has heard, and the comparison of arms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune import compare, jobs
from finetune.rounds import rounds
from finetune.seen import seen_in_pretraining
from gamut.errors import GamutError, RecipeError
from gamut.evaluate.metrics import paired_bootstrap
from gamut.recipe.load import load_recipe
from gamut.shards import Index
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.run import convert
from launchers.corpus import CLASSES, synthesise


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("rounds")
    convert("esc50", Esc50().list(synthesise(folder / "corpus", 30, seconds=0.2)), folder / "shards")
    return Index.open(folder / "shards")


def recipe(*words: str):
    return load_recipe("finetune", "esc10", ["data=/unused", *words])


def test_five_folds_by_default_each_trained_on_the_other_four(index: Index) -> None:
    found = rounds(recipe("finetune.seeds=2"), index)
    assert [(each.test, each.seed) for each in found] == [((fold,), seed) for fold in range(1, 6) for seed in range(2)]
    for each in found:
        assert sorted({*each.train, *each.test}) == [1, 2, 3, 4, 5]
        assert not set(each.train) & set(each.test)
        one = each.recipe(recipe("run.name=x"))
        assert (one.run.name, one.seed, one.folds.test) == (f"x/{each.name}", each.seed, [list(each.test)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folds.test=[[4]]", "folds.train=[3,4]"], "fold 4 is in folds.train"),
        (["folds.test=[[6]]"], r"names the folds \[6\]"),
        (["folds.column=speaker"], "folds.column is 'speaker'"),
    ],
)
def test_rounds_that_cannot_be(index: Index, words: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        rounds(recipe(*words), index)


def test_clips_of_the_pretraining_are_counted(index: Index, tmp_path: Path) -> None:
    test = index.table().select(index.where({"fold": [3, 4]}))
    weights = tmp_path / "run" / "checkpoints" / "step-1" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    assert seen_in_pretraining("", index, test) == 0
    assert seen_in_pretraining(str(weights), index, test) == 0  # no run around it
    note = tmp_path / "run" / "recipe.yaml"
    for subset, seen in (("{fold: [1, 2, 3]}", 6), ("{fold: [1, 2]}", 0), ("{}", 12)):
        note.write_text(f"data: {index.folder}\nsubset: {subset}\n")
        assert seen_in_pretraining(str(weights), index, test) == seen
    note.write_text("data: /elsewhere\nsubset: {}\n")
    assert seen_in_pretraining(str(weights), index, test) == 0


def scores(folder: Path, seed: int, right: np.ndarray) -> dict:
    """A round's entry of a summary in which the clips of `right` were classified rightly."""
    target = np.eye(len(CLASSES), dtype=np.float32)[np.arange(len(right)) % len(CLASSES)]
    logits = np.where(right[:, None], target, np.roll(target, 1, axis=1))
    order = np.random.default_rng(seed).permutation(len(right))
    path = folder / f"{seed}.npz"
    np.savez(path, row=order, target=target[order], logits=logits[order])
    confusion = np.zeros((len(CLASSES),) * 2, int)
    np.add.at(confusion, (target.argmax(1), logits.argmax(1)), 1)
    score = float(np.diag(confusion).sum() / len(right))
    return {"scores": str(path), "confusion": confusion.tolist(), "score": score, "clips": len(right)}


def test_arms_are_compared_clip_by_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """Learning rate: each arm's own best on the held-out training fold. Difference: paired, over clips."""
    random = np.random.default_rng(0)
    truth = {"good": random.random((2, 60)) < 0.8, "bad": random.random((2, 60)) < 0.5}
    best = {"good": "1e-3", "bad": "3e-4"}
    asked: list[tuple[str, ...]] = []

    def run_job(job: jobs.Job, threads: int) -> dict:
        asked.append(job.arguments)
        words = dict(word.split("=", 1) for word in job.arguments if "=" in word)
        arm = words["init"]
        if job.name.startswith("choose"):
            assert (words["folds.train"], words["folds.test"]) == ("[1, 2]", "[[3]]")
            return {"mean": 0.9 if words["optim.lr"] == best[arm] else 0.2}
        assert (words["folds.train"], words["folds.test"]) == ("[1, 2, 3]", "[[4, 5]]")
        assert words["optim.lr"] == best[arm]
        folder = tmp_path / arm
        folder.mkdir()
        rounds = [scores(folder, seed, truth[arm][seed]) for seed in range(2)]
        mean = float(truth[arm].mean())
        return {"metric": "accuracy", "mean": mean, "labels": list(CLASSES), "rounds": rounds}

    monkeypatch.setattr(jobs, "run_job", run_job)
    line = [
        "esc10",
        "--arm",
        "good=good",
        "--arm",
        "bad=bad",
        "--train",
        "1,2,3",
        "--test",
        "4,5",
        "--grid",
        "3e-4,1e-3",
    ]
    assert compare.main([*line, "--seeds", "2", "--out", str(tmp_path / "out"), "epochs=3"]) == 0
    report = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert report["arms"]["good"]["accuracy"] == pytest.approx(truth["good"].mean(1).tolist())
    mean, low, high = paired_bootstrap(truth["good"].mean(0), truth["bad"].mean(0), resamples=10_000, seed=0)
    assert report["difference"] == {"of": ["good", "bad"], "mean": mean, "low": low, "high": high}
    assert low < truth["good"].mean() - truth["bad"].mean() < high
    assert all("epochs=3" in arguments for arguments in asked)
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5_000
    assert "paired bootstrap 95 % interval" in capsys.readouterr().out


def test_a_finished_job_is_not_run_again_and_another_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = jobs.Job("one", ("esc10", "optim.lr=1"), tmp_path / "one")

    def run(line: list[str], **_: object) -> subprocess.CompletedProcess:
        assert line[0] == sys.executable
        (job.folder / "summary.json").write_text('{"mean": 0.5}')
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(jobs.subprocess, "run", run)
    assert jobs.run_job(job, 1) == {"mean": 0.5}
    monkeypatch.setattr(jobs.subprocess, "run", None)
    assert jobs.run_job(job, 1) == {"mean": 0.5}
    with pytest.raises(GamutError, match="holds a run with other arguments"):
        jobs.run_job(jobs.Job("one", ("esc10", "optim.lr=2"), job.folder), 1)
