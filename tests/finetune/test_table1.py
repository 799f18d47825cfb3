"""Whisper-AT's tables through their command: every head on every cache, once, at the rate that is best for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune import jobs, table1
from gamut.features import write_cache


def test_costs_alone_are_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    assert table1.main(["--encoders", "large,tiny", *out]) == 0
    table = (tmp_path / "table1.md").read_text()
    assert "| large | 32 x 1280 | tl_tr | 40.03 M | 16.42 G | 32.85 G | 8.1x |" in table
    assert "| large | 32 x 1280 | tl_tr_512 | 7.23 M | 3.17 G | 6.35 G | 42x |" in table
    assert "| large | 32 x 1280 | last_mlp | 0.68 M | 0.68 M | 1.36 M | 195,312x |" in table
    assert "| tiny | 4 x 384 | tl_tr | 3.75 M |" in table
    assert table.strip() in capsys.readouterr().out
    assert table1.main(["--encoders", "large", "--heads", "dimensions", *out]) == 0
    rows = json.loads((tmp_path / "table1.json").read_text())["rows"]
    found = [(round(row["cost"]["multiply_adds"] / 1e9, 2), round(row["cost"]["parameters"] / 1e6, 1)) for row in rows]
    assert found == [(0.31, 0.6), (0.93, 2.0), (3.17, 7.2), (6.72, 15.6), (16.42, 40.0)]


@pytest.fixture
def caches(tmp_path: Path) -> list[str]:
    words = []
    for name, shape in (("small", (2, 5, 16)), ("large", (3, 5, 32))):
        write_cache(tmp_path / name, np.zeros((4, *shape)))
        words += ["--features", f"{name}={tmp_path / name}"]
    return words


def test_every_head_is_scored_at_its_best_rate(
    caches: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, str]] = []
    best = {"wa_mlp": "1e-3", "tl_tr": "1e-4"}
    score = {("small", "wa_mlp"): 0.3, ("small", "tl_tr"): 0.5, ("large", "wa_mlp"): 0.4, ("large", "tl_tr"): 0.6}

    def run_job(job: jobs.Job, threads: int) -> dict:
        words = dict(word.split("=", 1) for word in job.arguments if "=" in word)
        asked.append(words)
        encoder, kind = Path(words["features"]).name, words["head.kind"]
        assert words["head.dim"] == "null"
        if job.name.endswith("-choose"):
            assert (words["folds.train"], words["folds.test"]) == ("[1, 2]", "[[3]]")
            return {"metric": "accuracy", "mean": 0.9 if words["optim.lr"] == best[kind] else 0.2}
        assert words["optim.lr"] == best[kind]
        rounds = [{"score": score[encoder, kind] + more} for more in (-0.1, 0.1)]
        return {"mean": score[encoder, kind], "metric": "accuracy", "labels": ["a", "b"], "rounds": rounds}

    monkeypatch.setattr(jobs, "run_job", run_job)
    line = ["whisper_at_esc10", *caches, "--heads", "wa_mlp,tl_tr", "--grid", "1e-4,1e-3", "--choose-train", "1,2"]
    line += ["--choose-test", "3", "--out", str(tmp_path / "out"), "epochs=3"]
    assert table1.main(line) == 0
    assert all(words["epochs"] == "3" for words in asked)
    assert len(asked) == 4 * 2 + 4
    rows = json.loads((tmp_path / "out" / "table1.json").read_text())["rows"]
    assert [(row["encoder"], row["head"], row["rate"]) for row in rows] == [
        ("small", "wa_mlp", "1e-3"), ("small", "tl_tr", "1e-4"), ("large", "wa_mlp", "1e-3"), ("large", "tl_tr", "1e-4")
    ]  # fmt: skip
    assert [round(row["mean"], 3) for row in rows] == [0.3, 0.5, 0.4, 0.6]
    table = (tmp_path / "out" / "table1.md").read_text()
    assert "| large | 3 x 32 | tl_tr | 60.0 | 50.0 70.0 | 1e-4 |" in table
    for picture in ("cost.png", "sizes.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "tl_tr_x"], "no head 'tl_tr_x'"),
        (["--encoders", "huge"], "no encoder 'huge'"),
        (["--features", "a=/absent"], "need a recipe"),
        (["whisper_at_esc10", "--features", "/absent"], "NAME=CACHE"),
        (["whisper_at_esc10", "--features", "a=/absent"], "no cache of features"),
        (["whisper_at_esc10", "--features", "a=b", "--grid", "1,2"], "--choose-train"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert table1.main(words) == 2
    assert said in capsys.readouterr().err
