"""Folds of sets that have no official ones: even over classes, groups whole, nearly the same for a larger set."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.folds import Strata, folds_of, hash_of_name

from .conftest import encode, write_sounds
from .test_foreign import write_tar


def hashes(names: list[str]) -> np.ndarray:
    return np.array([hash_of_name(name) for name in names], np.uint64)


CLASSES = [hash_of_name(name) for name in ("bell", "dog", "rain", "wind")]


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=80), st.integers(2, 12))
def test_each_class_is_spread_evenly_in_whatever_order_clips_come(classes: list[int], folds: int) -> None:
    names, strata = hashes([str(n) for n in range(len(classes))]), np.array(classes)
    found = folds_of(names, strata, CLASSES, folds)
    assert set(found) <= set(range(1, folds + 1))
    for one in set(classes):
        sizes = np.bincount(found[strata == one] - 1, minlength=folds)
        assert sizes.max() - sizes.min() <= 1
    order = np.random.default_rng(0).permutation(len(classes))
    np.testing.assert_array_equal(folds_of(names[order], strata[order], CLASSES, folds), found[order])


@given(st.integers(1, 200), st.integers(2, 12), st.integers(0, 1000))
def test_a_clip_more_moves_at_most_a_clip_a_border(clips: int, folds: int, seed: int) -> None:
    names = hashes([f"{seed}/{n}" for n in range(clips + 1)])
    strata = np.zeros(clips + 1, int)
    before, after = (folds_of(names[:k], strata[:k], CLASSES, folds) for k in (clips, clips + 1))
    assert np.count_nonzero(before != after[:-1]) <= folds - 1
    other = folds_of(np.append(names[:clips], names[-1]), np.append(strata[:clips], 1), CLASSES, folds)
    np.testing.assert_array_equal(other[:clips], before)  # of another class: none


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60), st.integers(2, 6))
def test_groups_stay_whole_and_folds_of_groups_of_one_class_are_even(clips: list[tuple[int, int]], folds: int) -> None:
    group, strata = (np.array(column) for column in zip(*clips))
    names = hashes([f"group {n}" for n in range(10)])[group]
    found = folds_of(names, strata, CLASSES, folds)
    for one in set(group):
        assert len(set(found[group == one])) == 1
    order = np.random.default_rng(0).permutation(len(clips))
    np.testing.assert_array_equal(folds_of(names[order], strata[order], CLASSES, folds), found[order])
    whole = folds_of(names, np.zeros(len(clips), int), CLASSES, folds)
    sizes = np.bincount(whole - 1, minlength=folds)
    assert sizes.max() - sizes.min() <= 2 * np.bincount(group).max()


def test_a_clip_of_several_classes_counts_for_its_rarest() -> None:
    strata = Strata()
    for labels in ((0, 1), (0,), (), (2, 0, 1), (1, 0)):
        strata.add(labels)
    assert strata.rarest().tolist() == [1, 0, -1, 2, 1]
    assert Strata().rarest().tolist() == []


def test_classes_of_few_clips_do_not_all_leave_out_the_same_folds() -> None:
    classes = [hash_of_name(f"class {n}") for n in range(60)]
    strata = np.repeat(np.arange(60), 2)
    found = folds_of(hashes([f"clip {n}" for n in range(120)]), strata, classes, 5)
    assert np.bincount(found, minlength=6)[1:].min() >= 12


def test_a_folder_gets_five_folds_and_is_told_so(sounds: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", "folder", str(sounds), str(tmp_path / "set"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert (
        "sounds has no official splits. The column fold parts the clips of sounds into 5 folds by hash, each class "
        "evenly; --folds 0 leaves it out.\n"
    ) in said
    index = Index.open(tmp_path / "set")
    assert set(index.columns) == {"fold"}
    for label in range(3):
        sizes = np.bincount(index.columns["fold"][index.label == label], minlength=6)[1:]
        assert sorted(sizes) == [1, 1, 2, 2, 2]
    assert main(["index", str(tmp_path / "set"), "--workers", "1"]) == 0  # from the tars alone
    np.testing.assert_array_equal(Index.open(tmp_path / "set").columns["fold"], index.columns["fold"])


def test_folds_are_as_many_as_asked_for(sounds: Path, tmp_path: Path, capsys) -> None:
    words = ["convert", "folder", str(sounds), "--workers", "1"]
    assert main([*words, str(tmp_path / "three"), "--folds", "3"]) == 0
    assert set(Index.open(tmp_path / "three").columns["fold"]) == {1, 2, 3}
    assert main([*words, str(tmp_path / "none"), "--folds", "0"]) == 0
    assert Index.open(tmp_path / "none").columns == {}
    for wrong in ("1", "-2", "x", "1001"):
        with pytest.raises(SystemExit):
            main([*words, str(tmp_path / "set"), "--folds", wrong])
        assert "is not a number of folds: 2 to 1000, or 0 for none" in capsys.readouterr().err


def test_a_larger_folder_keeps_the_folds_of_other_classes(sounds: Path, tmp_path: Path) -> None:
    src = Path(shutil.copytree(sounds, tmp_path / "src"))
    found = []
    for name in ("before", "after"):
        assert main(["convert", "folder", str(src), str(tmp_path / name), "--workers", "1"]) == 0
        index = Index.open(tmp_path / name)
        found.append({index.key(row): int(index.columns["fold"][row]) for row in range(len(index))})
        write_sounds(src, 1, ("newcomers",))
    assert found[0].items() <= found[1].items()


def test_a_set_that_an_earlier_version_began_has_no_folds(sounds: Path, tmp_path: Path) -> None:
    words = ["convert", "folder", str(sounds), str(tmp_path / "set"), "--workers", "1"]
    assert main([*words, "--folds", "0"]) == 0
    before = (tmp_path / "set" / "index" / "index.json").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "set" / "index" / "index.json").read_bytes() == before


def table(folder: Path, rows: list[dict[str, object]]) -> Path:
    with open(folder / "t.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder / "t.csv"


def test_a_table_keeps_recordings_and_groups_in_one_fold(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", rng.normal(scale=0.1, size=16000), 16000)
        rows += [
            {"path": f"{number}.wav", "labels": "wren", "start": at, "end": at + 0.2, "group": ""} for at in (0, 0.3)
        ]
    rows += [{"path": f"{n}.wav", "labels": "robin", "start": 0.6, "end": 0.8, "group": f"g{n % 2}"} for n in range(6)]
    assert main(["convert", "csv", str(table(tmp_path, rows)), str(tmp_path / "set"), "--workers", "1"]) == 0
    assert "evenly and the clips of a group or recording together;" in capsys.readouterr().out
    index = Index.open(tmp_path / "set")
    fold = {index.key(row): int(index.columns["fold"][row]) for row in range(len(index))}
    for number in range(6):
        assert len({value for key, value in fold.items() if key in (f"{number}_0", f"{number}_0_3")}) == 1
    for group in range(2):
        assert len({fold[f"{n}_0_6"] for n in range(6) if n % 2 == group}) == 1


@pytest.mark.parametrize(
    ("column", "more", "columns"),
    [("split", [], {"split"}), ("fold", [], {"fold"}), ("split", ["--folds", "2"], {"split", "fold"})],
)
def test_official_splits_are_enough(tmp_path: Path, column: str, more: list[str], columns: set[str], capsys) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(scale=0.1, size=8000), 16000)
    rows: list[dict[str, object]] = [{"path": "a.wav", "labels": "wren", column: 3}]
    assert main(["convert", "csv", str(table(tmp_path, rows)), str(tmp_path / "set"), "--workers", "1", *more]) == 0
    assert set(Index.open(tmp_path / "set").columns) == columns
    said = capsys.readouterr().out
    assert "no official splits" not in said
    assert ("The column fold parts the clips of t into 2 folds" in said) == bool(more)


def test_a_set_with_folds_is_given_no_others(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.wav").write_bytes(encode(np.zeros(800), 16000))
    source = table(tmp_path, [{"path": "a.wav", "labels": "wren", "fold": 3}])
    assert main(["convert", "csv", str(source), str(tmp_path / "set"), "--folds", "5"]) == 2
    assert "The set has a column fold of its own. Leave --folds out" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_set_without_classes_has_no_folds(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(np.zeros(800), 16000))
    source = table(tmp_path, [{"path": "a.wav"}])
    assert main(["convert", "csv", str(source), str(tmp_path / "set"), "--workers", "1"]) == 0
    assert Index.open(tmp_path / "set").columns == {}


def test_third_party_tars_get_folds_too(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    one = encode(rng.normal(scale=0.1, size=4000), 16000)
    members: dict[str, bytes] = {}
    for number in range(20):
        again = number in (3, 7, 12)
        members[f"{number}.wav"] = one if again else encode(rng.normal(scale=0.1, size=4000), 16000)
        members[f"{number}.cls"] = str(number % 2).encode()
    write_tar(tmp_path / "tars" / "0.tar", members)
    words = ["index", str(tmp_path / "tars"), "--workers", "1", "--out"]
    assert main([*words, str(tmp_path / "set")]) == 0
    assert "tars has no official splits. The column fold parts" in capsys.readouterr().out
    index = Index.open(tmp_path / "set")
    assert set(index.columns["fold"]) == {1, 2, 3, 4, 5}
    fold = {index.key(row): int(index.columns["fold"][row]) for row in range(20)}
    assert len({fold[key] for key in ("3", "7", "12")}) == 1  # the same bytes
    assert main([*words, str(tmp_path / "none"), "--folds", "0"]) == 0
    before = (tmp_path / "none" / "index" / "index.json").read_bytes()
    assert main([*words, str(tmp_path / "none")]) == 0  # as an earlier version left it: runs on it go on
    assert json.loads((tmp_path / "none" / "index" / "index.json").read_bytes()) == json.loads(before)
