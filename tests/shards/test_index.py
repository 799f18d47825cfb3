"""The index: what it answers, and that it never answers for other tars than its own."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gamut.errors import ShardError
from gamut.remote import pages
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.build import build
from gamut.shards.part import Part
from gamut.shards.write import Written

from .test_resume import contents


def test_arrays_are_memory_maps_of_the_stated_types(pristine: Path) -> None:
    index = Index.open(pristine)
    types = {
        "clip_id": "uint64", "shard": "int32", "offset": "int64", "size": "int64", "samples": "int64",
        "checksum": "uint64", "label": "int32", "label_offset": "int64",
    }  # fmt: skip
    for name, dtype in types.items():
        array = getattr(index, name)
        assert isinstance(array.base, np.memmap)
        assert array.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert len(index.label_offset) == len(index) + 1


def test_it_is_the_same_in_another_process(pristine: Path) -> None:
    index = Index.open(pristine)
    sent = pickle.dumps(index)
    assert len(sent) < 500  # the folder, not the arrays
    again = pickle.loads(sent)
    assert (again.fingerprint, again.key(5)) == (index.fingerprint, index.key(5))


def test_the_table_for_the_plan_has_every_clip_in_order(pristine: Path) -> None:
    index = Index.open(pristine)
    table = index.table()
    assert table.row.tolist() == list(range(len(index)))
    for name in ("clip_id", "shard", "samples", "size"):
        np.testing.assert_array_equal(getattr(table, name), getattr(index, name))


def test_a_subset_is_by_columns(esc10_part: Path, tmp_path: Path) -> None:
    assert main(["convert", "esc50", str(esc10_part), str(tmp_path / "set"), "--workers", "1"]) == 0
    index = Index.open(tmp_path / "set")
    fold, target = index.columns["fold"], index.columns["target"]
    rows = index.where({"fold": [1, 5], "target": [0, 10, 99]})
    assert rows.dtype == np.int64
    expected = [r for r in range(len(index)) if fold[r] in (1, 5) and target[r] in (0, 10)]
    assert rows.tolist() == expected
    assert index.where({}).tolist() == list(range(len(index)))
    assert len(index.where({"fold": []})) == 0
    with pytest.raises(ShardError, match="no column speaker; its columns are fold, target"):
        index.where({"speaker": [1]})
    with pytest.raises(ShardError, match=r"column fold .* no value 'train'; its values are integers without names"):
        index.where({"fold": ["train"]})


def test_a_value_of_a_column_may_have_names_and_a_name_several_values(tmp_path: Path) -> None:
    part = Part("shard-000000.tar", 4, 0, name="set", key=["a", "b", "c", "d"], offset=[0, 1, 2, 3], bytes=[1] * 4)
    part.samples, part.clip_checksum, part.labels = [4] * 4, [5] * 4, [[]] * 4
    part.columns = {"split": [0, 1, 2, 1]}
    (tmp_path / "shard-000000.tar").write_bytes(bytes(4))
    build(tmp_path, "set", [], [part], names={"split": {"small": [0], "eval": [2], "all": [0, 1]}, "fold": {"x": [1]}})
    index = Index.open(tmp_path)
    assert index.where({"split": ["all"]}).tolist() == [0, 1, 3]
    assert index.where({"split": ["eval", "small"]}).tolist() == [0, 2]
    assert index.where({"split": ["small", 1]}).tolist() == [0, 1, 3]
    assert index.where({"split": [2]}).tolist() == [2]
    assert index.names.keys() == {"split"}
    with pytest.raises(ShardError, match="no value 'train'; its values are named small, eval, all"):
        index.where({"split": ["train"]})


def test_a_part_comes_back_from_json_as_numbers_or_not_at_all() -> None:
    part = Part(
        "shard-000000.tar", 9, 2**64 - 1, "set", {1: "x"}, ["a", "b"], [0, 2**40], [1, 2], [3, 4], [2**64 - 1, 0]
    )
    part.labels, part.columns = [[1], []], {"fold": [-1, 2]}
    content = json.loads(json.dumps(part.dump()))
    again = Part.parse(json.loads(json.dumps(part.dump())))
    assert (again.key, again.labels, again.label_names, again.checksum) == (part.key, part.labels, {1: "x"}, 2**64 - 1)
    for name in ("offset", "bytes", "samples", "clip_checksum"):
        assert list(getattr(again, name)) == getattr(part, name)
    assert list(again.columns["fold"]) == [-1, 2]
    for wrong in (2**64, 0.5, "1", None):
        with pytest.raises((ValueError, TypeError)):
            Part.parse({**content, "offset": [0, wrong]})


def test_labels_may_be_several_or_none(tmp_path: Path) -> None:
    part = Part("shard-000000.tar", 4, 0, name="set", key=["a", "b", "ü"], offset=[0, 1, 2], bytes=[1, 1, 1])
    part.samples, part.clip_checksum, part.labels = [4, 5, 6], [7, 8, 2**64 - 1], [[2, 0], [], [1]]
    (tmp_path / "shard-000000.tar").write_bytes(bytes(4))
    build(tmp_path, "set", ["x", "y", "z"], [part])
    index = Index.open(tmp_path)
    assert [index.label_ids(row).tolist() for row in range(3)] == [[2, 0], [], [1]]
    assert [index.key(row) for row in range(3)] == ["a", "b", "ü"]
    assert index.checksum[2] == 2**64 - 1
    part.labels = [[], [], []]
    build(tmp_path, "set", [], [part])
    assert [len(Index.open(tmp_path).label_ids(row)) for row in range(3)] == [0, 0, 0]


def test_parts_that_are_not_one_set_are_refused(tmp_path: Path) -> None:
    def part(shard: int, name: str = "set", key: str = "a", label: int = 0, **columns: list[int]) -> Part:
        return Part(f"shard-{shard:06d}.tar", 0, 0, name, {}, [key], [0], [1], [1], [1], [[label]], columns)

    build(tmp_path, "set", ["x"], [part(0), part(1)])  # a key may come again in another shard
    for parts, message in (
        ([part(0), part(1, name="other")], "belongs to another set"),
        ([part(0, fold=[1]), part(1)], "belongs to another set"),
        ([part(0, label=1)], "has label 1, but there are 1 classes"),
        ([part(0), part(0)], "have the same clip id"),
    ):
        with pytest.raises(ShardError, match=message):
            build(tmp_path, "set", ["x"], parts)


def test_rebuilding_from_the_tars_gives_the_same_index(shards: Path, pristine: Path) -> None:
    for path in (shards / "index").glob("*.npy"):
        path.unlink()
    (shards / "index" / "index.json").unlink()
    with pytest.raises(ShardError, match=r"have no index.*gamut\.shards index"):
        Index.open(shards)
    assert main(["index", str(shards), "--workers", "1"]) == 0
    assert Index.open(shards).fingerprint == Index.open(pristine).fingerprint
    arrays = [name for name in contents(pristine) if name.endswith(".npy")]
    assert len(arrays) == 11
    assert all(contents(shards)[name] == contents(pristine)[name] for name in arrays)


def test_rebuilding_needs_nothing_but_the_tars(shards: Path, pristine: Path, tmp_path: Path) -> None:
    shutil.rmtree(shards / "index")
    moved = shards.rename(tmp_path / "elsewhere")
    assert main(["index", str(moved), "--workers", "2"]) == 0
    assert Index.open(moved).fingerprint == Index.open(pristine).fingerprint


def test_rebuilding_without_a_shard_says_so(shards: Path, capsys) -> None:
    (shards / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar is in the index but cannot be found"):
        Index.open(shards)
    assert main(["index", str(shards), "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "17 clips" in captured.out
    assert "1 shards of the conversion are missing" in captured.err
    assert len(Index.open(shards)) == 17


def test_of_many_tars_that_are_looked_for_at_once_the_first_that_is_wrong_is_named(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gamut.shards.index.AT_ONCE", 1)
    assert len(Index.open(shards)) == 24
    for name in ("shard-000001.tar", "shard-000003.tar"):
        (shards / name).unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar is in the index but cannot be found"):
        Index.open(shards)


@pytest.mark.parametrize("change", [-1, -512, 1, 512])
def test_an_index_of_another_size_than_its_tar_is_refused(shards: Path, change: int) -> None:
    tar = shards / "shard-000002.tar"
    os.truncate(tar, tar.stat().st_size + change)
    with pytest.raises(ShardError, match=r"shard-000002\.tar has \d+ bytes, but \d+ in the index: .*verify"):
        Index.open(shards)


def damaged(tar: bytes, how: str) -> bytes:
    """A tar with one of the damages that tarfile and WebDataset pass over without a word."""
    headers = [at for at in range(0, len(tar), 512) if tar[at + 257 : at + 262] == b"ustar"]
    if how == "cut between two clips":
        return tar[: headers[4]]
    if how == "cut in a header":
        return tar[: headers[4] + 100]
    if how == "cut in a payload":
        return tar[: headers[4] + 700]
    if how == "damaged header":
        return tar[: headers[4]] + bytes([tar[headers[4]] ^ 1]) + tar[headers[4] + 1 :]
    if how == "first header damaged":
        return bytes([tar[0] ^ 1]) + tar[1:]
    if how == "zeroed header":
        return tar[: headers[4]] + bytes(512) + tar[headers[4] + 512 :]
    if how == "no clip's json":
        return tar[: headers[1]] + tar[headers[2] :]
    if how == "flipped bit in the audio":
        return tar[: headers[0] + 900] + bytes([tar[headers[0] + 900] ^ 4]) + tar[headers[0] + 901 :]
    if how == "json is none":
        return tar[: headers[1] + 512] + b"[" + tar[headers[1] + 513 :]
    assert how == "empty"
    return b""


DAMAGES = [
    "cut between two clips", "cut in a header", "cut in a payload", "damaged header", "first header damaged",
    "zeroed header", "no clip's json", "flipped bit in the audio", "json is none", "empty",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_tar_is_not_indexed_as_a_shorter_one(shards: Path, how: str, capsys) -> None:
    tar = shards / "shard-000001.tar"
    tar.write_bytes(damaged(tar.read_bytes(), how))
    capsys.readouterr()
    assert main(["index", str(shards), "--workers", "1"]) == 2
    message = capsys.readouterr().err
    assert "shard-000001.tar" in message
    assert "Delete that tar, then run the conversion again" in message
    assert "Traceback" not in message


def test_tars_of_others_among_ours_are_told_apart(shards: Path, capsys) -> None:
    with tarfile.open(shards / "shard-000009.tar", "w") as tar:
        for name, content in (("../../x.flac", b"fLaC"), ("../../x.json", b'{"labels": ["dog"]}')):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    assert main(["index", str(shards)]) == 2
    assert "was not written by `python -m gamut.shards convert`" in capsys.readouterr().err


def test_a_damaged_index_is_one_sentence_that_says_how_to_mend_it(shards: Path) -> None:
    index = shards / "index"
    whole = {path: path.read_bytes() for path in index.iterdir() if path.is_file()}
    content = json.loads(whole[index / "index.json"])
    outside = {**content, "shards": [{**content["shards"][0], "name": "../../etc/passwd"}, *content["shards"][1:]]}
    for name, broken in (
        ("index.json", b""),
        ("index.json", b"[1, 2]"),
        ("index.json", json.dumps({**content, "format": 99}).encode()),
        ("index.json", json.dumps(outside).encode()),
        ("index.json", json.dumps({"format": 1}).encode()),
        ("offset.npy", b""),
        ("offset.npy", whole[index / "offset.npy"][:-8]),
        ("offset.npy", whole[index / "checksum.npy"]),
        ("samples.npy", whole[index / "label_offset.npy"]),
        ("key.npy", None),
    ):
        if broken is None:
            (index / name).unlink()
        else:
            (index / name).write_bytes(broken)
        with pytest.raises(ShardError, match=rf"{shards}.*python -m gamut.shards index {shards}"):
            Index.open(shards)
        (index / name).write_bytes(whole[index / name])
    Index.open(shards)


def test_one_changed_bit_anywhere_in_an_index_is_found_before_it_is_used(shards: Path) -> None:
    rng = np.random.default_rng(0)
    tried = found = 0
    assert main(["stats", str(shards)]) == 0
    index = shards / "index"
    for path in [*sorted(index.glob("*.npy")), index / "index.json", index / "statistics.json"]:
        whole = path.read_bytes()
        for place in rng.integers(0, 8 * len(whole), 40):
            broken = bytearray(whole)
            broken[place // 8] ^= 1 << (place % 8)
            path.write_bytes(broken)
            try:
                Index.open(shards).statistics()
            except ShardError as error:
                found += re.search(rf"(?s){shards}.*python -m gamut.shards", str(error)) is not None
            else:  # nothing but the name of the digest's own key, or space between words
                was, now = json.loads(whole), json.loads(broken)
                assert {key for key in was if now.get(key) != was[key]} <= {"digest"}
            tried += 1
        path.write_bytes(whole)
    assert Index.open(shards).statistics() is not None
    assert found > 0.98 * tried


def test_what_a_resumed_conversion_takes_over_has_its_digest(shards: Path) -> None:
    part = shards / "index" / "parts" / "shard-000000.json"
    assert Written.load(part) is not None
    whole = part.read_bytes()
    part.write_bytes(whole.replace(b'"samples": [', b'"samples": [1', 1))
    assert Written.load(part) is None
    part.write_bytes(whole)
    assert Written.load(part) is not None


def test_an_index_is_read_once_a_process_and_again_when_it_has_changed(shards: Path, monkeypatch) -> None:
    read = []
    digest = pages.digest
    monkeypatch.setattr(pages, "digest", lambda file, *ends: read.append(file.name) or digest(file, *ends))
    Index.open(shards)
    files = len(read)
    Index.open(shards)
    assert len(read) == files == len(list((shards / "index").glob("*.npy")))
    label = shards / "index" / "label.npy"
    label.write_bytes(label.read_bytes())
    Index.open(shards)
    assert read[files:] == [str(label)]


def test_no_shards_at_all_names_the_command_that_makes_them(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ShardError, match=r"no shards in .*python -m gamut.shards convert"):
            Index.open(folder)
