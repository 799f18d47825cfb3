"""Subsets and weights: the clips that were asked for, and a sentence where a name is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.errors import ShardError
from gamut.shards import Index
from gamut.shards.build import build
from gamut.shards.joined import Joined
from gamut.shards.part import Part
from gamut.shards.select import chosen_rows, clip_weights, for_scoring, per_class
from tests.close import assert_close

CLASSES = ["bell", "dog", "rain", "wind"]


def made(
    folder: Path, labels: list[list[int]], name: str = "set", classes: list[str] = CLASSES, names=None, **columns
) -> Index:
    """An index without tars of clips k0, k1, ... with these labels, four a shard."""
    parts = []
    for shard, first in enumerate(range(0, len(labels), 4)):
        own = labels[first : first + 4]
        keys = [f"k{first + i}" for i in range(len(own))]
        cut = {column: values[first : first + 4] for column, values in columns.items()}
        ones = [1] * len(own)
        parts.append(
            Part(f"shard-{shard:06d}.tar", 0, 0, name, {}, keys, list(range(len(own))), ones, ones, ones, own, cut)
        )
    folder.mkdir(parents=True, exist_ok=True)
    build(folder, name, classes, parts, names=names)
    return Index.open(folder, tars=False)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """12 clips: of bell 6, dog 4, rain 2; clip 11 is dog and rain, clip 10 has no label, wind is heard nowhere."""
    labels = [[0], [1], [0], [0], [1], [0], [2], [0], [1], [0], [], [1, 2]]
    return made(tmp_path / "set", labels, fold=[1, 2, 3] * 4)


def test_a_column_that_need_not_be_there(index: Index, tmp_path: Path) -> None:
    everything = list(range(12))
    assert chosen_rows(index, {"split?": ["train"]}).tolist() == everything
    assert chosen_rows(index, {"fold?": [2]}).tolist() == chosen_rows(index, {"fold": [2]}).tolist() == [1, 4, 7, 10]
    assert chosen_rows(index, {"fold?": [2], "fold": [3]}).tolist() == chosen_rows(index, {"fold": [3]}).tolist()
    with pytest.raises(ShardError, match=r"fold of the shards .* has no value 'train'"):
        chosen_rows(index, {"fold?": ["train"]})
    other = made(tmp_path / "other", [[0]] * 3, "other")
    joined = Joined([index, other])
    assert chosen_rows(joined, {"fold?": [2]}).tolist() == [1, 4, 7, 10, 12, 13, 14]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_by_label_by_column_and_by_key(index: Index, tmp_path: Path) -> None:
    everything = list(range(12))
    assert chosen_rows(index, {}).tolist() == everything
    assert chosen_rows(index, {"label": ["rain"]}).tolist() == [6, 11]
    assert chosen_rows(index, {"label": "dog"}).tolist() == chosen_rows(index, {"label": [1]}).tolist() == [1, 4, 8, 11]
    assert chosen_rows(index, {"label": ["rain", 1]}).tolist() == [1, 4, 6, 8, 11]
    assert chosen_rows(index, {"label": ["dog"], "fold": [2]}).tolist() == [1, 4]
    keys = write(tmp_path / "keys", "k4\n\nk11\nk2\n")
    assert chosen_rows(index, {"keys": keys}).tolist() == [2, 4, 11]
    assert chosen_rows(index, {"keys": keys, "label": ["dog"], "fold": [3]}).tolist() == [11]


@pytest.mark.parametrize(
    ("subset", "said"),
    [
        ({"label": ["dogs"]}, "no label 'dogs'; the nearest valid name is dog"),
        ({"label": [9]}, "no label 9; there are 4 classes"),
        ({"speaker": [1]}, "no column speaker"),
        ({"label": ["wind"]}, r"The subset \{'label': \['wind'\]\} selects no clip of"),
        ({"fold": [7]}, "selects no clip of"),
        ({"keys": "absent"}, "absent cannot be read"),
        ({"label": ["wind"], "per_class": 2}, "`per_class` needs labels"),
    ],
)
def test_what_is_not_there_is_said(index: Index, subset: dict, said: str) -> None:
    with pytest.raises(ShardError, match=said):
        chosen_rows(index, subset)


def test_a_number_that_is_also_the_name_of_another_is_refused(tmp_path: Path) -> None:
    digits = made(tmp_path / "digits", [[0], [1], [2]], classes=["1", "2", "two"])
    assert chosen_rows(digits, {"label": ["1"]}).tolist() == [0]
    assert chosen_rows(digits, {"label": [0, "two"]}).tolist() == [0, 2]
    with pytest.raises(ShardError, match=r"The label 1 is both class number 1 and the name of class number 0 in .*'1'"):
        chosen_rows(digits, {"label": [1]})
    names = {"split": {"1": [0], "2": [1], "3": [3], "both": [0, 1]}}
    splits = made(tmp_path / "splits", [[0]] * 3, names=names, split=[0, 1, 3])
    assert chosen_rows(splits, {"split": ["1"]}).tolist() == chosen_rows(splits, {"split": [0]}).tolist() == [0]
    assert chosen_rows(splits, {"split": [3]}).tolist() == chosen_rows(splits, {"split": "3"}).tolist() == [2]
    with pytest.raises(ShardError, match=r"In the column split of .*splits, 1 is both a value and the name .*\['1'\]"):
        chosen_rows(splits, {"split": [1]})


def test_unknown_keys_are_counted_and_the_nearest_is_named(index: Index, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys", "k4\nk7x\nzz\n")
    with pytest.raises(
        ShardError,
        match=r"names 2 keys that are not in .*, the first of them 'k7x'; the nearest valid name is k7\.",
    ):
        chosen_rows(index, {"keys": keys})
    with pytest.raises(ShardError, match="holds no keys"):
        chosen_rows(index, {"keys": write(tmp_path / "none", "\n")})


def test_a_share_is_random_repeatable_and_grows(index: Index) -> None:
    half, more = (set(chosen_rows(index, {"share": share}).tolist()) for share in (0.5, 0.75))
    assert (len(half), len(more)) == (6, 9)
    assert half < more
    assert half == set(chosen_rows(index, {"share": 0.5}).tolist())
    assert {tuple(chosen_rows(index, {"share": 0.5, "seed": seed}).tolist()) for seed in range(4)} != {
        tuple(sorted(half))
    }
    assert for_scoring({"fold": [1], "share": 0.5, "per_class": 2, "seed": 3}) == {"fold": [1], "seed": 3}


def test_few_of_each_class(index: Index) -> None:
    chosen = chosen_rows(index, {"per_class": 2})
    counts = np.bincount(np.concatenate([index.label_ids(row) for row in chosen]), minlength=4)
    assert counts.tolist() == [2, 2, 2, 0]  # clip 11 counts for dog and for rain
    assert chosen_rows(index, {"per_class": 2}).tolist() == chosen.tolist()
    assert {tuple(chosen_rows(index, {"per_class": 2, "seed": seed}).tolist()) for seed in range(5)} != {tuple(chosen)}
    assert len(chosen_rows(index, {"per_class": 100})) == 11  # all that have a label


@settings(max_examples=100)
@given(
    labels=st.lists(st.lists(st.integers(0, 6), max_size=4, unique=True), min_size=1, max_size=60),
    number=st.integers(1, 8),
)
def test_every_class_gets_its_number_or_all_it_has(labels: list[list[int]], number: int) -> None:
    if not any(labels):
        return
    offset = np.concatenate([[0], np.cumsum([len(ids) for ids in labels])])
    keys = np.random.default_rng(0).integers(0, 2**64, len(labels), dtype=np.uint64)
    flat = np.array([label for ids in labels for label in ids], np.int32)
    chosen = per_class(offset, flat, keys, number).tolist()
    for one in range(7):
        there = sum(one in ids for ids in labels)
        have = sum(one in labels[clip] for clip in chosen)
        assert have >= min(there, number)
        if all(len(ids) <= 1 for ids in labels):
            assert have == min(there, number)
    assert all(labels[clip] for clip in chosen)
    assert len(chosen) <= 7 * number


def test_balanced_weights_are_those_of_ast(index: Index) -> None:
    weights = clip_weights(index, np.arange(12), "balanced")
    bell, dog, rain = (1000 / (count + 0.01) for count in (6, 4, 2))
    expected = [bell, dog, bell, bell, dog, bell, rain, bell, dog, bell, 0.0, dog + rain]
    assert_close(weights, expected, 1e-12)
    part = clip_weights(index, np.array([0, 1, 2]), "balanced")  # counted over what is chosen
    assert_close(part, [1000 / 2.01, 1000 / 1.01, 1000 / 2.01], 1e-12)
    with pytest.raises(ShardError, match="needs labels"):
        clip_weights(index, np.array([10]), "balanced")


def test_weights_from_a_file(index: Index, tmp_path: Path) -> None:
    lines = [f"k{row}{',;'[0] if row % 2 else ' '}{row / 4}" for row in range(12)]
    file = write(tmp_path / "weights", "\n".join(lines))
    np.testing.assert_array_equal(clip_weights(index, np.array([3, 8]), file), [0.75, 2.0])
    for text, said in (
        ("\n".join(lines[:-1]), "no weight for 1 of 12 clips, the first of them 'k11'"),
        (
            "\n".join([*lines, "k99 1"]),
            "names 1 keys that are not in .*, the first of them 'k99'; the nearest valid name is k9",
        ),
        ("k1", "Line 1 of .* must hold a key and a number"),
        ("k1 many", "Line 1 of .* must hold a key and a number, not 'k1 many'"),
    ):
        with pytest.raises(ShardError, match=said):
            clip_weights(index, np.arange(12), write(tmp_path / "weights", text))


def test_selecting_clips_loads_neither_torch_nor_deepspeed() -> None:
    program = "import sys, gamut.shards.joined, gamut.shards.select; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "gamut.shards.select" in loaded
    assert not {"torch", "deepspeed", "transformers", "matplotlib"}.intersection(loaded)
