"""A report on any run that there may be, whole or not, looked at in a browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from gamut.evaluate.bootstrap import paired_bootstrap
from gamut.evaluate.metrics import MAP
from gamut.evaluate.scores import Scores, numbers_of
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import read_resolved
from gamut.report import comparison
from gamut.report.__main__ import main
from gamut.report.told import tell
from gamut.report.write import at_end, report
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.track.metrics import MetricsFile
from gamut.track.run import CLASSES, METRICS, RESULT, SCORES, RunFolder
from launchers.corpus import synthesise

FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs"
EVIL = "<script>alert('x')</script>"
SECTIONS = ("Scores", "Curves", "Confusion", "Classes", "Calibration", "Worst errors", "Cost", "What it was")
NAMES = [EVIL, "鳥の声", "犬", "🎸 guitar", "a|b `c` $d$", "rain & wind"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    synthesise(folder / "corpus", 24, seconds=1.0)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "set"), "--workers", "1"]) == 0
    return folder / "set"


def made(
    folder: Path,
    name: str = "made",
    *,
    labels: list[str] = NAMES,
    loss: str = "ce",
    data: Path | None = None,
    clips: int = 24,
    seed: int = 0,
) -> Path:
    """A fine-tuning run with one round, as one leaves it that was preempted once; of random scores."""
    words = [f"run.folder={folder}", "folds.test=[[5]]", f"data={data or folder / 'gone'}", f"finetune.loss={loss}"]
    recipe = load_recipe("finetune", "demo", words)
    recipe = replace(recipe, run=replace(recipe.run, name=f"{name}/test-5-seed-{seed}"))
    for attempt, steps in ((1, range(1, 31)), (2, range(21, 41))):  # the first was ten steps beyond its checkpoint
        run = RunFolder.open(recipe)
        lines = MetricsFile(run.metrics, attempt)
        lines.append(
            {"git": "0123456789abcdef", "index": "", "host": "here", "device": "cpu", "ranks": 1}, event="start"
        )
        for step in steps:
            values = {
                "loss": 4.0 / step + attempt,
                "clips_per_second": 16.0,
                "wait_share": 0.1,
                "seconds_per_step": 0.5,
            }
            lines.append({**values, "epoch": step // 10, "lr": 1e-3 * step}, step=step)
        lines.append({"status": "finished" if attempt == 2 else "preempted"}, event="end")
        lines.close()
    random = np.random.default_rng(seed)
    truth = np.arange(clips) % len(labels)
    target = np.eye(len(labels), dtype=np.float32)[truth]
    logits = (random.normal(size=target.shape) + 1.5 * target).astype(np.float32)
    index = Index.open(data) if data else None
    rows = np.arange(clips)
    keys = [index.key(row) for row in rows.tolist()] if index else [f"clip <{row}>" for row in rows]
    scores = Scores(rows, target, logits)
    scores.save(run.path / SCORES, keys, rows.astype(np.uint64))
    numbers = numbers_of(scores, loss == "ce")
    metric = "accuracy" if loss == "ce" else "mAP"
    result: dict[str, Any] = {
        "test": [5],
        "seed": seed,
        "metric": metric,
        "score": numbers.means[metric],
        "clips": clips,
    }
    result |= {"metrics": {metric: numbers.means[metric]}, "more_metrics": numbers.means, "interval": [0.1, 0.9]}
    result |= {"selected": "last epoch", "index": index.fingerprint if index else "", "left_out": numbers.left_out}
    if loss == "ce":
        result["confusion"] = scores.confusion().tolist()
    (run.path / RESULT).write_text(json.dumps(result))
    (run.path / CLASSES).write_text(numbers.by_class.csv(labels))
    return run.path.parent


def test_a_page_is_whole_in_itself_and_fits_every_screen(data: Path, tmp_path: Path, browser: Browser) -> None:
    page_file, plain_file = report([made(tmp_path, data=data).rename(tmp_path / "<i>one")])
    content = page_file.read_text()
    assert page_file.stat().st_size < 15 << 20
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", content)
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900})
        trouble: list[str] = []
        page.on("console", lambda message, to=trouble: to.append(message.text))
        page.on("dialog", lambda dialog, to=trouble: to.append(dialog.message))
        page.on("request", lambda request, to=trouble: to.append(request.url))
        page.goto(page_file.as_uri())
        for folded in page.locator("details").all():
            folded.evaluate("one => one.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("h1").inner_text() == "<i>one"
        assert page.locator("script").count() == 0
        shown = page.locator("main").inner_text()
        assert all(name in shown for name in NAMES)
        for section in (
            "Scores",
            "Curves",
            "Confusion",
            "Classes",
            "Calibration",
            "Worst errors",
            "Cost",
            "What it was",
        ):
            assert page.locator("h2", has_text=section).is_visible()
        images = page.locator("img").all()
        assert len(images) > 3
        for image in images:
            image.scroll_into_view_if_needed()
            assert image.evaluate("async one => { await one.decode(); return one.naturalWidth }") > 50
        player = page.locator("audio").first
        player.evaluate("one => new Promise(done => one.readyState ? done() : one.onloadedmetadata = done)")
        assert player.evaluate("one => one.duration") == pytest.approx(1.0, abs=0.05)
        assert [one for one in trouble if not one.startswith(("data:", page_file.as_uri()))] == []
        page.close()
    plain = plain_file.read_text()
    assert "<script" not in plain
    assert "鳥の声" in plain
    assert "Another attempt went on at step 21" in plain


def test_curves_join_attempts_and_costs_count_both(tmp_path: Path) -> None:
    _, plain_file = report([made(tmp_path)])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in plain_file.read_text().splitlines() if "|" in line
    ]
    (loss,) = [row for row in rows if row[0] == "loss"]
    assert loss[1:5] == ["5", "1.2", "5", "2.1"]  # steps 1 to 20 of the first attempt, 21 to 40 of the second
    cost = rows[next(place for place, row in enumerate(rows) if row[:2] == ["run", "time"]) + 2]
    assert cost[3] == "320"  # 40 steps of half a second at 16 clips/s: those that were undone count once
    assert cost[6] == "1"  # restart
    assert any(row[0] == "1" and row[2] == "preempted" for row in rows)


def test_several_labels_and_many_classes(tmp_path: Path, browser: Browser) -> None:
    labels = [f"class number {number} 音" for number in range(527)]
    page_file, plain_file = report([made(tmp_path, labels=labels, loss="bce", clips=600)])
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
    plain = plain_file.read_text()
    assert "The 20 worst" in plain
    assert all(label in plain for label in labels)
    assert "Without sound" in plain
    assert page_file.stat().st_size < 15 << 20


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.iterdir()))
def test_runs_of_earlier_versions(name: str, tmp_path: Path) -> None:
    run = shutil.copytree(FIXTURES / name, tmp_path / name)
    page_file, plain_file = report([run])
    assert "loss" in plain_file.read_text()
    assert ("Classes" in page_file.read_text()) == any(run.glob(f"*/{SCORES}"))


def test_a_run_that_is_half_there(tmp_path: Path) -> None:
    """Killed before it was scored, a line torn and one damaged, nothing else left but what it logged."""
    run = made(tmp_path)
    inside = run / "test-5-seed-0"
    for name in (RESULT, CLASSES, "recipe.yaml"):
        (inside / name).unlink()
    (inside / SCORES).write_bytes(b"PK\x03\x04 damaged")
    lines = (inside / METRICS).read_bytes().splitlines(keepends=True)
    (inside / METRICS).write_bytes(b"".join([*lines[:9], b'{"attempt": 1, "ti\xff\n', *lines[9:25], lines[25][:20]]))
    page_file, plain_file = report([run], tmp_path / "out")
    assert page_file.parent == tmp_path / "out"
    plain = plain_file.read_text()
    assert "1 lines that cannot be read" in plain
    assert "killed" in plain
    assert "| loss |" in plain
    (inside / METRICS).write_bytes(b"")
    report([run])


def test_what_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path} is not a run" in capsys.readouterr().err
    run = made(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([str(run), "--out", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 2
    assert "is called like a file: name a folder" in capsys.readouterr().err
    assert main([str(run), "--out", str(tmp_path / "file" / "in")]) == 2
    assert "Name another folder with --out" in capsys.readouterr().err


def test_the_calibration_of_several_rounds_says_that_it_is_of_all_their_clips(tmp_path: Path) -> None:
    run = made(tmp_path)
    pooled = "Expected calibration error of the clips of all rounds together, not the mean of rounds: 0."
    assert "Expected calibration error 0." in report([run])[1].read_text()
    assert made(tmp_path, seed=1) == run
    assert pooled in report([run])[1].read_text()


def test_several_runs_side_by_side(tmp_path: Path, browser: Browser) -> None:
    one, other = made(tmp_path / "a", clips=60), made(tmp_path / "b", clips=60, seed=1)
    page_file, plain_file = report([one, other], tmp_path / "both")
    a, b = (Scores.load(next(run.glob(f"*/{SCORES}"))) for run in (one, other))
    hits = [(each.logits.argmax(1) == each.target.argmax(1)).astype(float) for each in (a, b)]
    order = np.argsort(a.key)  # the draws go by the clips' names
    mean, low, high = paired_bootstrap(hits[1][order], hits[0][order])
    plain = plain_file.read_text()
    assert f"| b/made - a/made | {100 * mean:+.1f} points | {100 * low:+.1f} to {100 * high:+.1f} | 60 |" in plain
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h2", has_text="Recipes").is_visible()
    page.close()
    tags = [made(tmp_path / name, loss="bce", clips=60, seed=seed) for name, seed in (("c", 0), ("d", 1))]
    difference = comparison.difference(tell(tags[1]), tell(tags[0]))
    assert isinstance(difference, comparison.Difference)
    c, d = (Scores.load(next(run.glob(f"*/{SCORES}"))) for run in tags)
    assert difference.mean == pytest.approx(MAP.score(d.target, d.logits) - MAP.score(c.target, c.logits))
    assert difference.low < difference.mean < difference.high
    assert comparison.difference(tell(tags[0]), tell(one)) == "they are not scored by the same metric"


def test_nothing_that_goes_wrong_at_the_end_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    recipe = read_resolved(next(run.glob("*/recipe.yaml")))
    sent: list[Path] = []
    monkeypatch.setattr("gamut.report.write.keep", lambda uri, place, recipe, files: sent.extend(files))
    at_end(run, recipe)
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert sent == [run / "report.html", run / "report.md"]
    monkeypatch.setattr("gamut.report.write.keep", lambda *what: 1 / 0)
    at_end(run, recipe)
    assert f"mlflow.db did not take what {run} came to (division by zero)" in capsys.readouterr().out
    at_end(tmp_path / "none", recipe)
    assert "warning: no report" in capsys.readouterr().out
