"""Mixtures of labelled recordings: pairs of one fold, at equal power, the same every time."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.errors import RunError
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from launchers import mixtures, study
from launchers.corpus import synthesise
from launchers.events import recordings


def test_a_mixture_is_the_sum_at_equal_power() -> None:
    random = np.random.default_rng(0)
    loud, soft = random.normal(size=16000) * 0.2 + 0.1, random.normal(size=12000) * 0.001
    mixed = mixtures.added(loud.astype(np.float32), soft.astype(np.float32))
    assert (mixed.dtype, len(mixed), np.abs(mixed).max()) == (np.int16, 16000, 16384)
    parts = np.stack([loud - loud.mean(), np.pad(soft - soft.mean(), (0, 4000))], 1)
    shares = np.linalg.lstsq(parts, mixed, rcond=None)[0]
    assert np.abs(parts @ shares - mixed).max() < 1  # nothing but rounding
    assert shares[0] * loud.std() == pytest.approx(shares[1] * soft.std(), rel=1e-3)
    assert not mixtures.added(np.zeros(100, np.float32), np.zeros(50, np.float32)).any()


def test_pairs_are_of_two_classes_and_none_comes_twice() -> None:
    sounds = [(name, np.zeros(1, np.float32)) for name in "aabbc"]
    found = mixtures.pairs(sounds, 8, np.random.default_rng(1))
    assert len(set(found)) == 8
    assert all(sounds[a][0] != sounds[b][0] for a, b in found)
    with pytest.raises(RunError, match=r"only 8 pairs .* --each 9"):
        mixtures.pairs(sounds, 9, np.random.default_rng(1))


def test_a_fold_s_mixtures_are_of_its_own_recordings_and_carry_both_labels(tmp_path: Path) -> None:
    source = synthesise(tmp_path / "corpus", 60, seconds=0.5)
    for name in ("one", "two"):
        mixtures.make(source, tmp_path / name, 4)
    with open(tmp_path / "one" / "mixtures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    own = recordings(source)
    for row in rows:
        first, second = (soundfile.read(tmp_path / name / row["path"], dtype="int16")[0] for name in ("one", "two"))
        np.testing.assert_array_equal(first, second)
        sounds = own[int(row["fold"])]
        made = [
            (sorted((sounds[a][0], sounds[b][0])), mixtures.added(sounds[a][1], sounds[b][1]))
            for a, b in mixtures.pairs(sounds, 4, np.random.default_rng([0, int(row["fold"])]))
        ]
        assert any(";".join(labels) == row["labels"] and np.array_equal(each, first) for labels, each in made)
    assert shards(["convert", "csv", str(tmp_path / "one" / "mixtures.csv"), str(tmp_path / "set")]) == 0
    index = Index.open(tmp_path / "set")
    assert [len(index.label_ids(row)) for row in range(20)] == [2] * 20
    assert mixtures.chance(tmp_path / "set", "4,5") == pytest.approx(2 / len(index.labels))


def test_one_command_makes_them_and_hands_the_rest_to_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = synthesise(tmp_path / "corpus", 60, seconds=0.5), tmp_path / "mixtures"
    given: list[list[str]] = []
    monkeypatch.setattr(study, "main", lambda words: given.append(words) or 0)
    monkeypatch.setattr(mixtures, "run", lambda console, *words: shards(list(words[3:])))
    words = [str(source), "--folder", str(folder), "--each", "4"]
    assert mixtures.main(words) == 0
    assert given == []
    assert "chance: mAP" in capsys.readouterr().out
    assert mixtures.main([*words, "esc10/sparse", "--seeds", "2", "data=here"]) == 0
    task = ["--task", f"mixtures={folder}/shards", "probe.train={fold: [1,2,3]}", "probe.test={fold: [4,5]}"]
    assert given == [["esc10/sparse", "--seeds", "2", "data=here", *task]]
    assert mixtures.main([*words[:-1], "5"]) != 0
    assert "holds 4 mixtures of each fold, not 5" in capsys.readouterr().err
