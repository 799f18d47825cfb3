"""Equal sound under several names, and silence."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from gamut.errors import ShardError
from gamut.recipe.schema import FrontEnd
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.doubles import TABLE, find_doubles

from .conftest import encode
from .layouts import convert, sound
from .test_foreign import index, write_tar


def table(dst: Path) -> list[tuple[str, ...]]:
    with open(dst / "index" / TABLE, newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def test_equal_sound_on_both_sides_of_a_split_is_told_by_name(tmp_path: Path, capsys) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("d", 3)):
        sound(src / f"{name}.wav", seed=seed)
    shutil.copy(src / "a.wav", src / "other name.wav")  # in the other split, under another class
    samples, rate = soundfile.read(src / "b.wav", dtype="int16")
    soundfile.write(src / "b2.flac", samples, rate)  # other bytes, the same samples, in the same split
    rows = [
        "a.wav,dog,train",
        "b.wav,dog,train",
        "c.wav,dog,train",
        "d.wav,cat,test",
        "b2.flac,dog,train",
        "other name.wav,cat,test",
    ]
    (src / "t.csv").write_text("\n".join(("path,labels,split", *rows)))
    assert convert("csv", src, dst) == 0
    said = capsys.readouterr().out
    assert "2 clips repeat another; 1 of 2 sounds are in more than one split" in said
    assert "  other_name (test) = a (train)\n  b" in said
    expected = [
        ("0", "a", "train", "dog"),
        ("0", "other_name", "test", "cat"),
        ("1", "b", "train", "dog"),
        ("1", "b2", "train", "dog"),
    ]
    assert sorted(table(dst)) == expected
    assert main(["stats", str(dst), "--workers", "2"]) == 0
    assert "other_name (test) = a (train)" in capsys.readouterr().out
    assert sorted(table(dst)) == expected
    content = json.loads((dst / "index" / "statistics.json").read_bytes())
    assert (content["doubles"]["clips"], content["doubles"]["across"], content["silent"]) == (2, 1, 0)


def test_stats_compares_the_samples_of_third_party_tars(tmp_path: Path, capsys) -> None:
    audio = np.random.default_rng(0).normal(scale=0.1, size=8000)
    wav = encode(audio, 16000, subtype="PCM_16")
    members = {"a.wav": wav, "b.flac": encode(soundfile.read(io.BytesIO(wav))[0], 16000, "FLAC", "PCM_16")}
    write_tar(tmp_path / "tars" / "0.tar", members)
    write_tar(tmp_path / "tars" / "1.tar", {"a.wav": wav, "c.wav": encode(audio[::-1], 16000, subtype="PCM_16")})
    index(tmp_path / "tars", tmp_path / "set")
    assert "2 clips repeat another\n  0.tar/a = 0.tar/b = 1.tar/a\n" in capsys.readouterr().out
    index(tmp_path / "tars", tmp_path / "fast", "--fast")
    assert "1 clips repeat another\n  0.tar/a = 1.tar/a\n" in capsys.readouterr().out  # equal bytes
    assert main(["stats", str(tmp_path / "fast"), "--workers", "1"]) == 0
    assert [clip for _, clip, *_ in table(tmp_path / "fast")] == ["0.tar/a", "0.tar/b", "1.tar/a"]
    assert [clip for _, clip, *_ in table(tmp_path / "set")] == ["0.tar/a", "0.tar/b", "1.tar/a"]


def test_sets_without_doubles_have_no_table_of_them(shards: Path, capsys) -> None:
    assert not (shards / "index" / TABLE).exists()
    (shards / "index" / TABLE).write_text("of an earlier state")
    assert main(["stats", str(shards), "--workers", "1"]) == 0
    assert "equal sound" not in capsys.readouterr().out
    assert not (shards / "index" / TABLE).exists()


@pytest.mark.parametrize("folds", [(1, 1), (1, 2)])
def test_folds_are_sides_too(tmp_path: Path, folds: tuple[int, int]) -> None:
    (tmp_path / "index").mkdir()
    many = SimpleNamespace(
        folder=tmp_path, columns={"fold": np.array([*folds, 3])}, names={}, codecs=(), labels=("dog",),
        key=str, label_ids=lambda row: [0],
    )  # fmt: skip
    found = find_doubles(many, np.array([2**64 - 1, 2**64 - 1, 0], np.uint64))  # type: ignore[arg-type]
    assert (found.clips, found.groups, found.across, found.side) == (1, 1, folds[0] != folds[1], "fold")
    assert found.examples == ((f"0 (fold {folds[0]})", f"1 (fold {folds[1]})"),)


def test_two_million_clips_take_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    clips = 2_000_000
    (tmp_path / "index").mkdir()
    checksums = np.random.default_rng(0).integers(0, 2**64, clips, np.uint64)
    checksums[-1000:] = checksums[:1000]
    many = SimpleNamespace(
        folder=tmp_path, columns={"split": np.zeros(clips, np.int64)}, names={"split": {"train": [0]}}, codecs=(),
        labels=(), key=str, label_ids=lambda row: [],
    )  # fmt: skip
    tracemalloc.start()
    found = find_doubles(many, checksums)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.clips, found.groups, found.across) == (1000, 1000, 0)
    assert peak < 48 * clips


def test_a_set_of_silence_is_told_to_be_silent(tmp_path: Path, capsys) -> None:
    for number, level in enumerate((0.0, 0.25)):
        path = tmp_path / "src" / "a" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full(4000 + number, level), 16000))
    assert convert("folder", tmp_path / "src", tmp_path / "set") == 0
    made = Index.open(tmp_path / "set")
    (tmp_path / "set" / "index" / "statistics.json").rename(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match=r"no statistics yet: run `python -m gamut.shards stats"):
        made.normalisation(FrontEnd())
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "set"), "--workers", "1"]) == 0
    assert "2 clips are silent" in capsys.readouterr().out
    with pytest.raises(ShardError, match=r"are silent, or all frames alike.* set front.mean and front.std"):
        made.normalisation(FrontEnd())
    assert made.statistics() is None
    assert made.normalisation(FrontEnd(-4.0, 4.0)) == (-4.0, 4.0)
