"""Rounds of fine-tuning, what the pretraining has heard, and the comparison of arms."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from finetune import compare, jobs
from finetune.rounds import rounds
from finetune.scoring import Scoring, summarise
from finetune.work import Finetune
from gamut.errors import GamutError, RecipeError, RunError
from gamut.evaluate.bootstrap import paired_bootstrap
from gamut.evaluate.scores import Scores
from gamut.models.vit import VisionTransformer
from gamut.models.weights import save_weights
from gamut.recipe import schema
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import resolved_yaml
from gamut.runs.words import SEEN
from gamut.shards import Index
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.run import convert
from gamut.track.metrics import History
from gamut.track.run import RunFolder
from gamut.train.world import World
from launchers.corpus import CLASSES, synthesise
from tests.close import assert_close
from tests.train import ranks

from .tuning import tune

TINY = ["model.dim=16", "model.depth=1", "model.heads=2"]


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
        (["folds.test=[[4]]", "folds.train=[3,4]"], "fold 4 is both in folds.train"),
        (["folds.test=[[6]]"], r"names the folds \[6\]"),
        (["folds.column=speaker"], "folds.column is 'speaker'"),
        (["subset.fold=[1,2]"], "subset.fold conflicts with folds: set folds.train"),
    ],
)
def test_rounds_that_cannot_be(index: Index, words: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        rounds(recipe(*words), index)


def test_a_picture_that_fails_loses_no_result(index: Index, tmp_path: Path) -> None:
    words = ["run.name=x", f"run.folder={tmp_path}", "folds.test=[[5]]"]
    (each,) = rounds(recipe(*words), index)
    target = np.eye(len(index.labels), dtype=np.float32)
    Scores(np.arange(len(target)), target, target).save(tmp_path / "scores.npz", index.keys(), index.clip_id)

    def broken(*_: object) -> None:
        raise ValueError("no picture")

    run: Any = SimpleNamespace(folder=tmp_path, tracker=SimpleNamespace(figure=broken))
    one: Any = None
    scoring = Scoring(one, each.recipe(recipe(*words)), each, index, one, None, run, ALONE)
    with pytest.raises(ValueError, match="no picture"):
        scoring.finish(3, 0, {"path": "weights", "sha256": "12"})
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["score"], result["index"]) == (1.0, index.fingerprint)
    assert result["init"] == {"path": "weights", "sha256": "12"}


ALONE = World(0, 1, 0, 1, torch.device("cpu"), 1)


@pytest.mark.parametrize(("every", "scored"), [(0, [5]), (0.3, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5])])
def test_a_round_is_scored_every_so_many_epochs_and_at_its_end(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, scored: list[int]
) -> None:
    words = ["folds.test=[[5]]", "epochs=5", f"finetune.evaluate_epochs={every}"]
    (each,) = rounds(recipe(*words), index)
    one: Any = SimpleNamespace(with_average=nullcontext, folder=tmp_path)
    scoring = Scoring(one, recipe(*words), each, index, one, None, one, ALONE)
    monkeypatch.setattr(scoring, "_look", lambda epoch: {"epoch": epoch + 1})
    assert [found["epoch"] for epoch in range(5) if (found := scoring(epoch, one))] == scored


def test_a_finished_round_is_of_its_recipe_and_its_clips(index: Index, tmp_path: Path) -> None:
    mine = recipe("run.name=x", f"run.folder={tmp_path}", "folds.test=[[5]]")
    (each,) = rounds(mine, index)
    folder = RunFolder.place(each.recipe(mine))
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(resolved_yaml(each.recipe(mine)))

    def again(*words: str) -> dict | None:
        other = recipe("run.name=x", f"run.folder={tmp_path}", "folds.test=[[5]]", *words)
        return Finetune(other, index).round(each, {}, ALONE, 0.0, 1.0)

    for result in ({"score": 0.5}, {"score": 0.5, "index": index.fingerprint}):  # of an earlier version, and of now
        (folder / "result.json").write_text(json.dumps(result))
        assert again("finetune.seeds=3", "folds.test=[[5],[4]]", "run.threads=2") == result
    with pytest.raises(RunError, match=r"another recipe \(optim\.lr: "):
        again("optim.lr=0.5")
    (folder / "result.json").write_text('{"score": 0.5, "index": "another"}')
    with pytest.raises(RunError, match="trained on the shard set another"):
        again()


@pytest.mark.parametrize("fold", [1, 4, 5])
def test_clips_without_a_label_are_refused_where_accuracy_judges(index: Index, tmp_path: Path, fold: int) -> None:
    words = ["run.name=x", f"run.folder={tmp_path}", "folds.test=[[5]]", "folds.validation=[4]", *TINY]
    bare = copy.copy(index)
    gone = int(index.where({"fold": [fold]})[0])
    counts = np.diff(index.label_offset)
    counts[gone] = 0
    bare.label_offset = np.concatenate([[0], np.cumsum(counts)])
    (each,) = rounds(recipe(*words), bare)
    with pytest.raises(RecipeError, match=rf"1 of \d+ clips of the folds \[.*{fold}.*\] have no label, such as"):
        Finetune(recipe(*words), bare).round(each, {}, ALONE, 0.0, 1.0)


def scores(folder: Path, seed: int, right: np.ndarray) -> dict:
    """A round's entry of a summary in which the clips of `right` were classified rightly."""
    target = np.eye(len(CLASSES), dtype=np.float32)[np.arange(len(right)) % len(CLASSES)]
    logits = np.where(right[:, None], target, np.roll(target, 1, axis=1))
    order = np.random.default_rng(seed).permutation(len(right))
    path = folder / f"{seed}.npz"
    keys = np.array([f"clip-{number:02d}" for number in order])
    np.savez(path, key=keys, row=order, target=target[order], logits=logits[order])
    by_class = [float(right[target[:, label] == 1].mean()) for label in range(len(CLASSES))]
    return {"scores": str(path), "by_class": by_class, "score": float(right.mean()), "clips": len(right)}


def test_arms_are_compared_clip_by_clip(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
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
            return {"metric": "accuracy", "mean": 0.9 if words["optim.lr"] == best[arm] else 0.2}
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
        f"data={index.folder}",
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
    assert_close(report["arms"]["good"]["accuracy"], truth["good"].mean(1))
    mean, low, high = paired_bootstrap(truth["good"].mean(0), truth["bad"].mean(0), resamples=10_000, seed=0)
    assert report["difference"] == {"of": ["good", "bad"], "mean": mean, "low": low, "high": high}
    assert low < truth["good"].mean() - truth["bad"].mean() < high
    assert all("epochs=3" in arguments for arguments in asked)
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5_000
    assert "paired bootstrap 95 % interval" in capsys.readouterr().out


def test_each_seed_draws_its_labelled_clips_and_an_arm_has_words_of_its_own(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    truth = {arm: random.random((3, 60)) < 0.6 for arm in ("a b", "")}
    asked: dict[str, list[dict[str, str]]] = {arm: [] for arm in truth}

    def run_job(job: jobs.Job, threads: int) -> dict:
        words = dict(word.split("=", 1) for word in job.arguments if "=" in word)
        mine = asked[words["init"]]
        mine.append(words)
        folder = tmp_path / job.name
        folder.mkdir()
        right = truth[words["init"]][len(mine) - 1]
        rounds = [scores(folder, 0, right)]
        return {"metric": "accuracy", "mean": float(right.mean()), "labels": list(CLASSES), "rounds": rounds}

    monkeypatch.setattr(jobs, "run_job", run_job)
    line = ["esc10", f"data={index.folder}", "--arm", "kept='a b' finetune.freeze=true optim.lr=1e-2", "--arm", "new="]
    line += ["--train", "1,2,3", "--test", "4,5", "--labels", "8", "--out", str(tmp_path / "out"), "seed=5"]
    assert compare.main(line) == 0
    for arm, own in (("a b", {"finetune.freeze": "true", "optim.lr": "1e-2"}), ("", {})):
        assert [words["subset.seed"] for words in asked[arm]] == ["0", "1", "2"]
        assert [words["seed"] for words in asked[arm]] == ["5", "6", "7"]
        assert {words["subset.per_class"] for words in asked[arm]} == {"8"}
        assert {words["finetune.seeds"] for words in asked[arm]} == {"1"}
        assert all(
            {key: words.get(key) for key in ("finetune.freeze", "optim.lr") if key in words} == own
            for words in asked[arm]
        )
    report = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert_close(report["arms"]["kept"]["accuracy"], truth["a b"].mean(1))
    assert report["difference"]["mean"] == pytest.approx(truth["a b"].mean() - truth[""].mean())


@pytest.mark.parametrize(
    "folds", [["--choose-test", "5,3", "--test", "4,5"], ["--test", "2"]]
)  # 2: the last of --train
def test_a_rate_is_never_chosen_by_the_clips_that_judge_it(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys, folds: list[str]
) -> None:
    monkeypatch.setattr(jobs, "run_job", lambda *_: pytest.fail("nothing is to be trained"))
    line = ["esc10", f"data={index.folder}", "--arm", "a=", "--train", "1,2", *folds, "--out", str(tmp_path)]
    assert compare.main([*line, "--grid", "3e-4,1e-3"]) == 2
    assert "by which learning rates are chosen, have 6 clips of the folds" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("arms", [["scratch"], ["=x"], ["a=", "a=x"], ["a=runs/x freeze"], ["a='x"]])
def test_arms_are_named_once(arms: list[str], capsys) -> None:
    line = [word for arm in arms for word in ("--arm", arm)]
    assert compare.main(["esc10", *line, "--train", "1", "--test", "5"]) == 2
    assert f"--arm takes NAME=INIT, each name once (INIT empty: from scratch), not {arms[-1]!r}" in " ".join(
        capsys.readouterr().err.split()
    )


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
    with pytest.raises(RecipeError, match="--jobs is 0"):
        jobs.run_all([job], 0, Console())
    with pytest.raises(GamutError, match="holds a run with other arguments"):
        jobs.run_job(jobs.Job("one", ("esc10", "optim.lr=2"), job.folder), 1)


def pretrained(run: Path, step: int, seed: int, depth: int = 1) -> None:
    """Publish a checkpoint of a pretraining: a teacher and its manifest."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    teacher = VisionTransformer(schema.Model(dim=16, depth=depth, heads=2), seed=seed).state_dict()
    file = folder / "objective.safetensors"
    save_weights(file, {f"teacher.backbone.{name}": tensor for name, tensor in teacher.items()}, {})
    entry = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps({"files": {file.name: entry}}))
    (run / "checkpoints" / "latest").write_text(folder.name)


def quick(index: Index, init: Path, runs: Path, *more: str) -> list[str]:
    line = ["esc10", f"data={index.folder}", f"init={init}", f"run.folder={runs}", "run.name=x", *TINY, "epochs=1"]
    line += ["folds.train=[1]", "front.mean=0", "front.std=1", "step.packs=1", "loader.workers=0", "run.threads=1"]
    return [*line, "track.mlflow=off", *more]


def test_a_round_goes_on_without_the_run_that_it_began_with(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint has the weights, and its folder what they were and which clips they had seen, which marks its
    score in every table, and in the log."""
    source, result = tmp_path / "source", tmp_path / "x" / "test-4-seed-0" / "result.json"
    line = quick(index, source, tmp_path, "folds.test=[[4]]")
    pretrained(source, 3, seed=0)
    (source / "recipe.yaml").write_text(f"data: {index.folder}\nsubset: {{}}\n")
    assert ranks.run(1, tune, line) == [0]
    first = json.loads(result.read_text())
    assert (first["seen_in_pretraining"], len(first["init"]["sha256"])) == (6, 64)
    result.unlink()
    shutil.rmtree(source)
    assert ranks.run(1, tune, line) == [0]
    assert json.loads(result.read_text()) == first
    assert History.read(result.parent / "metrics.jsonl").series(SEEN)[1] == [6.0]
    for seen, marks in ((first, 2), (first | {SEEN: 0}, 0)):
        summary = summarise(tmp_path, index, [seen])
        assert (summary[SEEN], capsys.readouterr().out.count("% *")) == (3 * marks, marks)
    summarise(tmp_path, index, [first, first | {"score": first["score"] + 0.5}])
    assert "± 25.0%" in capsys.readouterr().out
    for seen, note in (({}, ""), ({SEEN: 6}, "* 6 scored clips were trained on before, by the run behind init")):
        compare.compare({"one": summary | seen}, {"one": ""}, Console())
        text = " ".join(capsys.readouterr().out.split())
        assert ("% *" in text, note in text) == (bool(note), True)


@pytest.mark.long
def test_a_result_of_weights_that_init_does_not_mean_any_more_is_refused(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Through finetune/run.py, and through the jobs of studies and comparisons."""
    source, folder = tmp_path / "source", tmp_path / "x"
    line = quick(index, source, tmp_path, "folds.test=[[4],[5]]")

    def status() -> int:
        (answer,) = ranks.run(1, tune, line)
        return answer

    monkeypatch.setattr(jobs, "call", lambda *_: pytest.fail("it is done already"))
    job = jobs.Job("one", tuple(line), folder)
    pretrained(source, 3, seed=0)
    assert status() == 0
    summary = json.loads((folder / "summary.json").read_text())
    file = source / "checkpoints" / "step-00000003" / "objective.safetensors"
    kept = {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert [each["init"] for each in summary["rounds"]] == [kept, kept]
    assert status() == 0
    assert jobs.run_job(job, 1) == summary

    pretrained(source, 4, seed=1)  # it goes on
    moved = rf"{folder} was trained from {file} .*, and init={source} is now .*step-00000004.*emove or rename {folder}"
    assert status() == 2
    with pytest.raises(RunError, match=moved):
        jobs.run_job(job, 1)
    shutil.rmtree(source)
    assert status() == 0  # nothing says that they are others
    assert jobs.run_job(job, 1) == summary
    pretrained(source, 3, seed=2)  # once more from the beginning
    assert status() == 2
    with pytest.raises(RunError, match=f"trained from {file} .*, and that file has changed"):
        jobs.run_job(job, 1)
    shutil.rmtree(folder / "test-5-seed-0")
    (folder / "test-4-seed-0" / "result.json").unlink()
    assert status() == 2  # one that had begun ends with what it began with; the next is not to begin with another
    assert json.loads((folder / "test-4-seed-0" / "result.json").read_text())["init"] == kept
    assert not (folder / "test-5-seed-0").exists()
