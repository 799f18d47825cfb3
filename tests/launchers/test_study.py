"""Pretraining recipes side by side: each trained, probed and fine-tuned from once, and what it all comes to."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from finetune import jobs
from gamut.errors import GamutError, RunError
from gamut.probe.__main__ import main as probe
from gamut.recipe.find import list_recipes
from gamut.shards.__main__ import main as shards
from gamut.track.metrics import History, MetricsFile
from launchers import findings, study
from launchers.corpus import synthesise
from pretrain.run import main as pretrain
from tests.finetune.tuning import tune
from tests.train.ranks import run

SIZE = ["model.dim=16", "model.depth=1", "model.heads=2", "model.table_frames=96", "step.packs=2", "loader.workers=0"]
SIZE += ["track.mlflow=off", "track.picture_epochs=0", "run.threads=1"]
SMALL = [*SIZE, "epochs=4", "step.clips=6", "asit.hidden=16", "asit.bottleneck=8", "asit.prototypes=16"]
SMALL += ["probe.train={fold: [1,2,3]}", "probe.test={fold: [4,5]}"]
TUNING = ["epochs=2", "views.frames=96", "folds.train=[1,2,3]", "folds.test=[[4,5]]", "finetune.evaluate_epochs=2"]


def pretraining(world: object, line: list[str]) -> int:
    return pretrain(line)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run: each in a forked process that has its imports done."""
    lines: list[list[str]] = []

    def call(name: str, words: Sequence[str], log: Path, threads: int) -> None:
        lines.append(list(words))
        if words[0] == "-m":
            assert probe(list(words[2:])) == 0, name
        else:
            work = pretraining if "pretrain" in Path(words[0]).parts else tune
            assert run(1, work, list(words[1:])) == [0], name

    monkeypatch.setattr(study, "call", call)
    monkeypatch.setattr(jobs, "call", call)
    return lines


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 clips of 1 s in 5 folds."""
    folder = tmp_path_factory.mktemp("data")
    synthesise(folder / "corpus", 60, seconds=1.0)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards")]) == 0
    assert shards(["stats", str(folder / "shards")]) == 0
    return str(folder / "shards")


@pytest.mark.parametrize("recipes", [("demo",), pytest.param(("demo", "table3/global"), marks=pytest.mark.long)])
def test_every_arm_and_seed_is_trained_probed_and_fine_tuned_once(
    called: list[list[str]], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipes: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    line = [*recipes, f"data={data}", "subset={fold: [1,2,3]}", "views.frames=96", *SMALL]
    line += ["--task", f"sounds={data},demo", *(word for each in [*SIZE, *TUNING] for word in ("--tune", each))]
    line += ["--seeds", "1", "--points", "2", "--kind", "cls", "--out", str(out)]
    assert study.main(line) == 0
    assert len(called) == 3 * len(recipes) + 1

    report = json.loads((out / "study.json").read_text())["sounds"]
    assert list(report) == ["log-mel", "untrained", *recipes]
    tokens = 36 * 2 * 49 * 4  # clips, views, a class token and 48 patches, epochs
    for arm in recipes:
        kept = arm.replace("/", "-")
        assert report[arm]["tokens"] == [0, tokens // 2, tokens]
        assert report[arm]["flops"][0] == 0 < report[arm]["flops"][1] == report[arm]["flops"][2] / 2
        assert report[arm]["seconds"][0] == 0 < report[arm]["seconds"][1] < report[arm]["seconds"][2]
        scored = json.loads((out / f"{kept}-seed-0" / "probe-sounds" / "scores.json").read_text())
        by_checkpoint = [[entry["scores"]["probe/linear/cls"]] for entry in scored]
        assert report[arm]["probe"]["linear/cls"] == by_checkpoint
        summary = json.loads((out / f"sounds-from-{kept}-seed-0" / "summary.json").read_text())
        assert report[arm]["finetune"] == [summary["mean"]]
        assert summary["clips"] == 24
    assert report["untrained"]["probe"]["knn/mean"] == report["demo"]["probe"]["knn/mean"][:1]
    assert (out / "study.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    flops = report["demo"]["flops"][-1]
    assert f"demo: {tokens / 1e6:.2f} million tokens, {flops / 1e12:.3g} TFLOP a run" in printed

    called.clear()
    assert study.main(line) == 0
    assert called == []


def test_results_of_other_arguments_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, called = tmp_path / "demo-seed-0", []

    def call(name: str, words: Sequence[str], log: Path, threads: int) -> None:
        called.append(name)
        if words[0] == "-m":
            (run / "probe-a" / "scores.json").write_text("[]")
            return
        run.mkdir()
        file = MetricsFile(run / "metrics.jsonl", 1)
        file.append({"status": "finished"}, event="end")
        file.close()

    def ask(*overrides: str, points: int = 2, data: str = "shards/a") -> None:
        one = study.Study(("demo",), overrides, (), 1, points, tmp_path, 1)
        one.pretrain("demo", 0)
        assert one.probe("demo", 0, study.Task("a", data)) == []

    def refused(what: str, *overrides: str, **other: Any) -> None:
        with pytest.raises(GamutError, match=f"{what} holds a result of other arguments"):
            ask(*overrides, **other)

    monkeypatch.setattr(study, "call", call)
    for earlier in (False, True):
        if earlier:  # as a version left it that kept no arguments
            (tmp_path / "logs" / "demo-seed-0.json").unlink()
            (run / "probe-a" / "arguments.json").unlink()
        ask("epochs=4", "probe.neighbours=5")
        ask("epochs=4", "probe.neighbours=5")
        assert called == ["demo-seed-0", "the probe of demo-seed-0 on a"]
        refused("demo-seed-0", "epochs=5", "probe.neighbours=5")
        refused("demo-seed-0", "epochs=4", "probe.neighbours=5", points=4)
        refused("probe-a", "epochs=4", "probe.neighbours=6")
        refused("probe-a", "epochs=4", "probe.neighbours=5", data="shards/b")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--task", "shards/digits"], "must be NAME=SHARDS or NAME=SHARDS,RECIPE"),
        (["epochs=3", "--task", "words=shards/digits"], "Name a recipe of pretraining"),
        (["demo", "--task", "words=shards/digits", "data=/nowhere"], "There are no shards at /nowhere"),
        (["demo", "--task", "words=shards/digits", "--task", "words=shards/esc10"], "Two tasks are called words"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "a=/nowhere"], "--task a: There are no shards at /nowhere"),
        (["--task", "a={data}", "probe.folds=speaker"], "--task a: The shards in {data} have no column speaker"),
        (["--task", "a={data}", "probe.row=true"], "Unknown key probe.row"),
        (["--task", "a={data},demmo"], "--task a: There is no finetune recipe called 'demmo'"),
        (["--task", "a={data},demo", "--tune", "optim.lrr=1"], "--task a: Unknown key optim.lrr"),
        (["--task", "a={data},demo", "--tune", "folds.test=[[7]]"], "--task a: The recipe names the folds [7]"),
        (["--task", "a={data},demo", "--tune", "subset.labels=[Dog]"], "--task a: The shards in {data} have no column"),
        (
            ["--task", "a={data}", "--kind", "rows"],
            "demo does not have these vectors, only cls, mean, both. With probe.rows=true it has rows.",
        ),
        (
            ["--task", "a={data}", "--kind", "pool", "probe.rows=true"],
            "demo does not have these vectors, only cls, mean, both, rows.\n",
        ),
        (["--task", "a={data}", "model.pooling=mean"], "--kind both: demo does not have these vectors, only mean.\n"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    words: list[str], said: str, called: list[list[str]], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["demo", f"data={data}", *SMALL[:-2], "--out", str(tmp_path), *(word.format(data=data) for word in words)]
    assert study.main(line) == 2
    assert said.format(data=data) in capsys.readouterr().err
    assert called == []


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--points", "0"], ["--seeds", "-1"], ["--kind", "row"]])
def test_numbers_and_choices_that_cannot_be_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        study.main(["demo", "--task", "words=shards/digits", *words])
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_the_recipes_of_the_examples_are_there() -> None:
    assert {word for word in str(study.__doc__).split() if word.startswith("digits")} <= {*list_recipes("pretrain")}


def test_seeds_that_were_probed_after_other_epochs_have_no_mean() -> None:
    run = [scored(0.2, 0, 0.4), scored(0.5, 8, epochs=2.0), scored(0.6, 16, epochs=4.0)]
    for other in (run[:2], [run[0], run[1], scored(0.6, 16, epochs=3.0)]):
        with pytest.raises(RunError, match="a were probed on words after 0, 2, 4 epochs, and with another seed after"):
            findings.collect({("a", 0, "words"): run, ("a", 1, "words"): other}, {}, {"a": 1000}, {"a": 1e9}, unknown)


def test_cpu_seconds_are_summed_from_the_means_of_the_steps_between(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 1)
    file.append({"cpu_seconds_per_step": 3.0}, step=1)
    file.append({"cpu_seconds_per_step": 0.5}, step=5)
    file.append({"loss": 0.5}, step=6)
    file.close()
    assert findings.spent(History.read(path), [0, 1, 3, 5]) == [0.0, 3.0, 4.0, 5.0]
    file = MetricsFile(tmp_path / "older.jsonl", 1)
    file.append({"loss": 0.5}, step=1)
    file.close()
    assert findings.spent(History.read(tmp_path / "older.jsonl"), [0, 1]) == []


def test_a_command_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(GamutError, match=r"one ended with status 3; the end of .*log:\nlast words"):
        jobs.call("one", ["-c", "import sys; print('last words', flush=True); sys.exit(3)"], tmp_path / "a" / "log", 1)


def unknown(recipe: str, seed: int, steps: Sequence[int]) -> list[float]:
    """CPU seconds of runs that did not note them."""
    return []


def scored(score: float, step: int, logmel: float | None = None, epochs: float = 0.0) -> dict:
    """An entry of scores.json."""
    scores = {"probe/knn/cls": score, "probe/linear/cls": score + 0.1, "probe/clips": 9.0}
    if logmel is not None:
        scores |= {"probe/knn/logmel": logmel, "probe/linear/logmel": logmel}
    return {"name": "", "step": step, "epochs": epochs, "scores": scores}


def printed(report: dict) -> list[list[str]]:
    """The words of every line of the tables, in a terminal of 80 columns."""
    console = Console(width=80, record=True, file=io.StringIO())
    for table in findings.tables(report):
        console.print(table)
    return [line.split() for line in console.export_text().splitlines()]


def test_the_tables_of_three_recipes_are_whole_in_80_columns() -> None:
    names = ("digits/reconstruction_unmasked", "digits/reconstruction", "digits")
    kinds = [f"{how}/{kind}" for how in ("knn", "linear") for kind in ("both", "rows")]
    seeds = [0.5, 0.6, 0.704]
    arms = {name: {"probe": {kind: [seeds] for kind in kinds}, "finetune": seeds} for name in ("untrained", *names)}
    arms["log-mel"] = {"probe": {"knn/logmel": [[0.4]], "linear/logmel": [[0.4]]}}
    rows = printed({"words": arms})
    whole = ["│", "60.1", "±", "10.2"]
    assert ["│", "linear", "rows", *whole * 4, "│"] in rows
    assert ["│", "fine-tuned", *whole * 4, "│"] in rows
    words = [word for row in rows for word in row]
    assert {"reconstruction_", "reconstruction", "unmasked"} <= set(words)
    assert not any("…" in word for word in words)


def test_means_and_spreads_are_over_seeds() -> None:
    ends = {"a": (0.5, 0.7), "b": (0.6, 0.9)}
    probes = {
        (arm, seed, "words"): [scored(0.2 + 0.1 * seed, 0, 0.4), scored(ends[arm][seed], 8)]
        for seed in range(2)
        for arm in ends
    }
    tuned = {(arm, seed, "words"): 0.8 + 0.02 * seed for seed in range(2) for arm in ("untrained", "a", "b")}

    def seconds(recipe: str, seed: int, steps: Sequence[int]) -> list[float]:
        return [(10.0 + seed) * step for step in steps]

    report = findings.collect(probes, tuned, {"a": 1000, "b": 3000}, {"a": 2e12, "b": 6e12}, seconds)
    arms = report["words"]
    assert arms["b"]["tokens"] == [0, 3000]
    assert arms["b"]["flops"] == [0, 6e12]
    assert arms["b"]["seconds"] == [0, 84.0]
    assert arms["a"]["probe"]["knn/cls"] == [[0.2, pytest.approx(0.3)], [0.5, 0.7]]
    assert arms["untrained"]["probe"]["knn/cls"] == [[0.2, pytest.approx(0.3)]]
    assert arms["log-mel"]["probe"] == {"knn/logmel": [[0.4]], "linear/logmel": [[0.4]]}
    assert arms["untrained"]["finetune"] == [0.8, pytest.approx(0.82)]

    rows = printed(report)
    deviation = np.std([50, 70], ddof=1)
    assert ["k-NN", "cls", "│", "25.0", "±", "7.1", "│", "60.0", "±", f"{deviation:.1f}"] in [row[1:11] for row in rows]
    assert ["log-mel:", "k-NN", "40.0,", "linear", "probe", "40.0"] in rows
    assert ["│", "k-NN", "cls", "│", "+35.0", "│", "+15.0", "│"] in rows
    assert ["│", "fine-tuned", "│", "+0.0", "│", "+0.0", "│"] in rows
    assert [axis.axison for axis in findings.plot(report, "cls").axes] == [True] * 3
    for over, last in (("tokens", 0.003), ("flops", 6.0), ("seconds", 84.0)):
        lines = findings.plot(report, "cls", over).axes[0].lines
        assert [line.get_xdata()[-1] for line in lines if line.get_label() == "b"] == [last], over
    console = Console(width=100, record=True, file=io.StringIO())
    for table in findings.paths(report, "cls"):
        console.print(table)
    rows = [line.split() for line in console.export_text().splitlines()]
    assert ["│", "│", "0.00", "│", "6", "│", "84", "│", "75.0", "±", "21.2", "│", "85.0", "±", "21.2", "│"] in rows
    heard = findings.collect(probes, tuned, {"a": 1, "b": 3}, {"a": 2.0, "b": 6.0}, seconds, {("b", 0, "words"): 5})
    shown = " ".join(word for row in printed(heard) for word in row)
    assert "± 1.4 * │" in shown
    assert "* 5 scored clips were trained on before" in shown
    names = [label.get_text() for label in findings.plot(heard, "cls").axes[2].get_xticklabels()]
    assert names == ["untrained", "a", "b *"]
    probed = {name: {"probe": arm["probe"], "tokens": arm.get("tokens", [])} for name, arm in arms.items()}
    figure = findings.plot({"words": arms, "others": probed}, "cls")  # of which nothing was fine-tuned from
    assert [axis.axison for axis in figure.axes] == [True] * 5 + [False]
