"""The demo's corpus: whole or not there, and of as many clips as were asked for."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from launchers import corpus, demo
from launchers.scenes import SCENES
from tests import warm


def test_a_corpus_that_was_interrupted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = corpus.soundfile.write, []

    def interrupted(path: Path, *rest: object, **more: object) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *rest, **more)

    monkeypatch.setattr(corpus.soundfile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        corpus.synthesise(tmp_path, 12)
    assert len(list((tmp_path / "audio").iterdir())) == 5
    assert not (tmp_path / "meta" / "esc50.csv").exists()
    monkeypatch.undo()

    corpus.synthesise(tmp_path, 12)
    with (tmp_path / "meta" / "esc50.csv").open(newline="") as file:
        names = {row["filename"] for row in csv.DictReader(file)}
    assert names == {path.name for path in (tmp_path / "audio").iterdir()}
    assert len(names) == 12


@pytest.mark.parametrize("kind", SCENES)
def test_every_scene_is_a_sound_of_the_length_that_was_asked_for(kind: str) -> None:
    for seconds in (0.2, 2.0):
        one, other = (corpus.sound(kind, seconds, np.random.default_rng(seed)) for seed in (0, 1))
        assert one.shape == (int(seconds * corpus.RATE),)
        for wave in (one, other):
            assert np.isfinite(wave).all()
            assert 0.1 < np.abs(wave).max() < 1.0
        assert np.corrcoef(one, other)[0, 1] < 0.9
        assert np.array_equal(one, corpus.sound(kind, seconds, np.random.default_rng(0)))


def test_the_demo_does_not_go_on_with_a_corpus_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.synthesise(tmp_path / "corpus", 12)
    assert demo.main(["--folder", str(tmp_path), "--clips", "18"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "holds 12 clips, not 18: give another --folder" in error
    assert not (tmp_path / "shards").exists()


def test_the_demo_from_its_first_step_to_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that it prints, of fewer clips and epochs, in a folder whose name has a space."""
    run, typed = demo.run, []

    def shorter(console: Console, *words: str) -> None:
        typed.append(words[1])
        less = ("epochs=1", "loader.workers=0", "run.threads=1", "track.mlflow=off", "optim.warmup_epochs=0")
        run(console, *words, *(() if words[1] == "-m" else less))

    monkeypatch.setattr(demo, "run", shorter)
    monkeypatch.setattr(sys, "executable", warm.python())
    monkeypatch.setenv(warm.INSIDE, "1")
    folder = tmp_path / "a folder"
    assert demo.main(["--folder", str(folder), "--clips", "60", "--labels", "1"]) == 0
    assert typed == ["-m", "pretrain/run.py", "finetune/compare.py"]
    said = " ".join(capsys.readouterr().out.split())
    report = json.loads((folder / "compare" / "comparison.json").read_text())
    for arm, title in (("scratch", "from scratch"), ("pretrained", "pretrained, kept as it is")):
        scores = report["arms"][arm]["accuracy"]
        assert len(scores) == 3
        assert report["arms"][arm]["clips"] == 20
        assert f"{100 * sum(scores) / 3:.1f}%" in said, title
    assert report["arms"]["pretrained"]["seen_in_pretraining"] == 0
    assert "40 clips without labels" in said
    assert f"{100 * report['difference']['mean']:+.1f} points" in said
