"""Mixtures with known times: made of their own fold alone, the same every time, and heard where the table says."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from launchers.corpus import synthesise
from launchers.events import SECONDS, first_event, mix, mixture


def test_an_event_is_what_comes_before_the_first_pause() -> None:
    silence, tone = np.zeros(8000, np.float32), np.sin(np.arange(4800) * 0.3).astype(np.float32)
    found = first_event(np.concatenate([silence, tone, silence, tone]))
    assert abs(len(found) - 4800) <= 640
    assert np.abs(found).mean() > 0.5
    assert len(first_event(np.concatenate([tone, silence[:1600], tone]))) == 4800 * 2 + 1600  # 0.1 s is no pause


def test_a_mixture_is_loud_where_it_says() -> None:
    sounds = [("tone", np.sin(np.arange(16000) * 0.3).astype(np.float32))]
    for seed in range(5):
        waveform, events = mixture(sounds, np.random.default_rng(seed))
        assert (waveform.dtype, len(waveform)) == (np.int16, round(SECONDS * 16000))
        heard = np.zeros(len(waveform), bool)
        for onset, offset, name in events:
            assert name == "tone"
            assert 0 <= onset < offset <= SECONDS
            heard[round(onset * 16000) : round(offset * 16000)] = True
        level = np.abs(np.diff(waveform.astype(np.float64)))
        assert level[heard[1:]].mean() > 1.5 * level[~heard[1:]].mean()


def test_a_fold_s_mixtures_are_of_its_own_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = synthesise(tmp_path / "corpus", 30, seconds=0.5)
    own: dict[int, set[int]] = {}
    asked: list[set[int]] = []

    def noted(sounds: list, random: np.random.Generator) -> tuple:
        asked.append({hash(sound.tobytes()) for _, sound in sounds})
        return mixture(sounds, random)

    monkeypatch.setattr("launchers.events.mixture", noted)
    mix(source, tmp_path / "one", 2)
    with open(tmp_path / "one" / "mixtures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, sounds in zip(rows, asked, strict=True):
        own.setdefault(int(row["fold"]), sounds)
        assert own[int(row["fold"])] == sounds
        assert row["path"].startswith(f"{row['fold']}/")
    assert sum(map(len, own.values())) == len(set().union(*own.values())) == 30  # no recording is in two folds
    mix(source, tmp_path / "two", 2)
    for row in rows:
        first, second = (soundfile.read(tmp_path / name / row["path"])[0] for name in ("one", "two"))
        np.testing.assert_array_equal(first, second)
    words = [str(tmp_path / "one" / "mixtures.csv"), str(tmp_path / "set"), "--workers", "1"]
    assert shards(["convert", "csv", *words, "--events", str(tmp_path / "one" / "events.tsv")]) == 0
    index = Index.open(tmp_path / "set")
    assert len(index) == 10
    assert all(len(index.events(row)) for row in range(10))
