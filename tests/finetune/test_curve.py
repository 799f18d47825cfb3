"""The score over epochs of pretraining: one fine-tuning for every checkpoint that was kept, none of them twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from finetune import compare, curve, jobs
from finetune.rounds import rounds
from gamut.errors import RecipeError, ShardError
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import resolved_yaml
from gamut.shards import Index
from gamut.track import figures
from gamut.track.checkpoints import Checkpoints
from tests.shards.layouts import convert, sound


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A pretraining run that has kept two checkpoints, and is to keep a third."""
    folder = tmp_path / "run"
    for step, epochs in ((20, 10), (10, 5), (30, 15)):
        Checkpoints(folder / "checkpoints").keep(f"step-{step:08d}", epochs)
        if step < 30:
            (folder / "checkpoints" / f"step-{step:08d}").mkdir()
    recipe = load_recipe("pretrain", "asit_tiny", ["init=vit.safetensors"])
    (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
    return folder


def test_every_kept_checkpoint_is_fine_tuned_once(
    monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path, capsys
) -> None:
    asked: list[tuple[str, str]] = []

    def run_once(line: list[str], **_: object) -> jobs.subprocess.CompletedProcess:
        words = dict(word.split("=", 1) for word in line if "=" in word)
        asked.append((words["run.name"], words["init"]))
        assert (line[2], words["optim.lr"]) == ("esc10", "3e-4")
        score = 0.1 * len(asked)
        summary = {"metric": "accuracy", "mean": score, "rounds": [{"score": score}, {"score": score + 0.2}]}
        (Path(words["run.folder"]) / words["run.name"] / "summary.json").write_text(json.dumps(summary))
        return jobs.subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(jobs.subprocess, "run", run_once)
    line = [str(run), "esc10", "--zero", "--out", str(tmp_path / "out"), "optim.lr=3e-4"]
    assert curve.main(line) == 0
    place = run / "checkpoints"
    first = [("epoch-0000", "vit.safetensors"), ("epoch-0005", str(place / "step-00000010"))]
    first.append(("epoch-0010", str(place / "step-00000020")))
    assert asked == first
    (place / "step-00000030").mkdir()  # the pretraining has gone on
    assert curve.main(line) == 0
    assert asked == [*first, ("epoch-0015", str(place / "step-00000030"))]
    report = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert list(report["scores"]) == ["0", "5", "10", "15"]
    assert report["scores"]["15"] == pytest.approx([0.4, 0.6])
    assert (tmp_path / "out" / "curve.png").stat().st_size > 5_000
    assert "[4/4] epoch-0015: 40.0%" in capsys.readouterr().out


def test_a_run_without_kept_checkpoints_is_told_how_to_keep_them(tmp_path: Path, capsys) -> None:
    assert curve.main([str(tmp_path), "esc10"]) != 0
    assert "checkpoint.keep_every=n" in capsys.readouterr().err


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A set with the columns `split` (three names, 0 to 2) and `take`."""
    src = tmp_path_factory.mktemp("split")
    for speaker in range(4):
        sound(src / "src" / "go" / f"{speaker:08x}_nohash_0.wav", seed=speaker)
    (src / "src" / "validation_list.txt").write_text("go/00000000_nohash_0.wav")
    (src / "src" / "testing_list.txt").write_text("go/00000001_nohash_0.wav")
    assert convert("speechcommands", src / "src", src / "set") == 0
    return Index.open(src / "set")


def recipe(*words: str):
    return load_recipe("finetune", "scv2", ["data=/unused", *words])


def test_folds_go_by_the_names_of_splits(split: Index) -> None:
    (one,) = rounds(recipe(), split)
    assert (one.train, one.validation, one.test) == (("train",), ("validation",), ("test",))
    assert one.name == "test-test-seed-0"
    (rest,) = rounds(recipe("folds.train=null", "folds.test=[[2]]"), split)
    assert (rest.train, rest.validation, rest.test) == ((0,), ("validation",), (2,))
    (without,) = rounds(recipe("folds.train=null", "folds.validation=null"), split)
    assert (without.train, without.validation) == ((0, 1), ())
    folds = without.recipe(recipe()).folds
    assert (folds.train, folds.validation, folds.test) == ([0, 1], None, [["test"]])


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["folds.train=[0,train]", "folds.test=[[train]]"], RecipeError, "fold train is both in folds.train"),
        (["folds.validation=[test]"], RecipeError, "fold test is both in folds.validation"),
        (["folds.train=[0]", "folds.test=[[train]]"], RecipeError, "must not overlap"),
        (["folds.train=[1]"], RecipeError, "chooses the epoch on .'validation'. and tests on"),
        (["folds.test=[[tset]]"], ShardError, "has no value 'tset'; its values are named"),
        (["folds.test=[[7]]"], RecipeError, r"names the folds \[7\].* has \[0, 1, 2\] \(.*test"),
        (["folds.train=[1.5]"], RecipeError, "must be a list of whole numbers or names or null"),
        (["folds.test=[a]"], RecipeError, "must be a list of lists of whole numbers or names"),
    ],
)
def test_names_that_cannot_be(split: Index, words: list[str], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        rounds(recipe(*words), split)


def test_arms_with_official_splits_choose_their_rate_on_validation(
    split: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    """mAP is no mean over clips, so the difference of two arms comes without an interval."""
    seen: list[dict[str, str]] = []

    def run_job(job: jobs.Job, threads: int) -> dict:
        words = dict(word.split("=", 1) for word in job.arguments if "=" in word)
        load_recipe("finetune", job.arguments[0], job.arguments[1:])  # what it asks for can be
        seen.append(words)
        score = 0.5 if words["init"] else 0.25
        entry = {"score": score, "clips": 7, "by_class": [0.2, None, 0.6]}
        return {"metric": "mAP", "mean": score, "labels": ["a", "b", "c"], "rounds": [entry, entry]}

    monkeypatch.setattr(jobs, "run_job", run_job)
    line = ["scv2", "--arm", "vit=vit.pth", "--arm", "scratch=", "--train", "train", "--test", "test"]
    line += ["--choose-test", "validation", "--grid", "1e-3,1e-4", "--out", str(tmp_path), "finetune.loss=bce"]
    line += [f"data={split.folder}"]
    plotted: list[Figure] = []
    plot = figures.arms
    monkeypatch.setattr(figures, "arms", lambda *words: plotted.append(plot(*words)) or plotted[-1])
    same = [word.replace("validation", "0,2,validation") for word in line]  # 2 is test's number
    assert compare.main(same) == 2
    assert "of the folds ['test']" in " ".join(capsys.readouterr().err.split())
    assert not seen
    assert compare.main(line) == 0
    choosing, final = seen[:4], seen[4:]
    assert all(words["folds.test"] == "[['validation']]" for words in choosing)
    assert all(words["folds.validation"] == "null" for words in choosing)
    assert all(words["folds.test"] == "[['test']]" and "folds.validation" not in words for words in final)
    assert [figure.axes[0].get_ylabel() for figure in plotted] == ["mAP, %"]
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert report["difference"] == {"of": ["vit", "scratch"], "mean": 0.25}
    assert report["arms"]["vit"]["mAP"] == [0.5, 0.5]
    assert "+25.0 points" in capsys.readouterr().out
    rounds_of = {"metric": "mAP", "rounds": [{"by_class": [0.2, None]}, {"by_class": [0.4, None]}]}
    assert compare.by_class(rounds_of)[0] == pytest.approx(0.3)
    assert np.isnan(compare.by_class(rounds_of)[1])


def test_a_picture_shows_the_classes_in_which_arms_differ_most() -> None:
    one, other = np.array([0.1, 0.9, np.nan, 0.5, 0.2]), np.array([0.2, 0.1, np.nan, 0.5, 0.7])
    assert compare.most_different([one, other], most=3).tolist() == [0, 1, 4]
    assert compare.most_different([one, other]).tolist() == [0, 1, 2, 3, 4]
