"""Every damage is found, named, and ends in exit status 1."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from gamut.shards import Index
from gamut.shards.__main__ import main

from .test_index import DAMAGES, damaged


def verify(folder: Path, capsys: pytest.CaptureFixture[str], workers: int = 1) -> tuple[int, list[str]]:
    capsys.readouterr()
    status = main(["verify", str(folder), "--workers", str(workers)])
    return status, capsys.readouterr().out.splitlines()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 8
    path.write_bytes(content)


def test_a_sound_set_is_sound(pristine: Path, capsys) -> None:
    assert verify(pristine, capsys) == (0, ["24 clips in 4 shards are as they were written"])
    assert verify(pristine, capsys, workers=2)[0] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flipped_bit_names_its_clip_and_only_that(shards: Path, capsys, workers: int) -> None:
    index = Index.open(shards)
    rows = (2, 9, 23)
    for row in rows:
        flip(index.shard_path(index.shard[row]), int(index.offset[row]) + int(index.size[row]) // 2)
    status, lines = verify(shards, capsys, workers)
    assert status == 1
    clips = [f"{index.shard_path(index.shard[row]).name}/{index.key(row)}: fails its checksum" for row in rows]
    assert [line for line in lines if re.match(r"shard-\d+\.tar/", line)] == clips
    assert [line.split(":")[0] for line in lines if line not in clips] == [
        "shard-000000.tar", "shard-000001.tar", "shard-000003.tar",
    ]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_every_kind_of_damage_is_found(shards: Path, how: str, capsys) -> None:
    tar = shards / "shard-000001.tar"
    tar.write_bytes(damaged(tar.read_bytes(), how))
    status, lines = verify(shards, capsys)
    assert status == 1
    assert lines
    assert all(line.startswith("shard-000001.tar") for line in lines)


def test_a_cut_tar_names_every_clip_that_is_lost(shards: Path, capsys) -> None:
    index = Index.open(shards)
    tar = shards / "shard-000001.tar"
    tar.write_bytes(damaged(tar.read_bytes(), "cut between two clips"))
    lost = [index.key(row) for row in range(9, 14)]  # two of its seven are left
    _, lines = verify(shards, capsys)
    assert "in the index" in lines[0]
    assert "is cut off or has a damaged header" in lines[1]
    assert [line.split(": ")[0] for line in lines[2:]] == [f"shard-000001.tar/{key}" for key in lost]


def test_a_missing_and_an_unknown_shard_are_named(shards: Path, capsys) -> None:
    (shards / "shard-000002.tar").rename(shards / "stray.tar")
    status, lines = verify(shards, capsys)
    assert status == 1
    assert lines == [
        "shard-000002.tar: cannot be read (No such file or directory); its 7 clips are missing",
        "stray.tar: is not in the index",
    ]


def test_a_tar_of_another_conversion_is_not_taken_for_its_own(shards: Path, capsys) -> None:
    (shards / "shard-000000.tar").write_bytes((shards / "shard-000001.tar").read_bytes())
    status, lines = verify(shards, capsys)
    assert status == 1
    assert any(line.startswith("shard-000000.tar: ") and "checksum" in line for line in lines)


def test_a_changed_description_is_found_though_the_audio_is_whole(shards: Path, capsys) -> None:
    tar = shards / "shard-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b'"duration": 0.', b'"duration": 9.', 1))
    assert verify(shards, capsys) == (
        1,
        ["shard-000000.tar: fails its checksum: bytes have changed since it was indexed"],
    )


def test_a_damaged_index_is_damage(shards: Path, capsys) -> None:
    flip(shards / "index" / "offset.npy", 200)
    status, lines = verify(shards, capsys)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("index/offset.npy: is damaged; rebuild the index: python -m gamut.shards index")
    assert main(["index", str(shards), "--workers", "1"]) == 0
    assert verify(shards, capsys)[0] == 0


def said(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `verify` says on stderr about what to do."""
    capsys.readouterr()
    assert main(["verify", str(folder), "--workers", "1"]) == 1
    return capsys.readouterr().err


def test_it_says_what_to_do_and_that_mends_it(shards: Path, sounds: Path, capsys) -> None:
    index = Index.open(shards)
    flip(index.shard_path(1), int(index.offset[8]) + 40)
    (shards / "shard-000002.tar").write_bytes((shards / "shard-000002.tar").read_bytes()[:5000])
    (shards / "shard-000003.tar").unlink()
    err = said(shards, capsys)
    assert "damages in" in err
    assert "shard-000001.tar, shard-000002.tar, shard-000003.tar: delete, and run the conversion again" in err
    assert f"python -m gamut.shards convert folder SRC {shards}" in err
    for name in ("shard-000001.tar", "shard-000002.tar"):
        (shards / name).unlink()
    assert main(["convert", "folder", str(sounds), str(shards), "--clips-per-shard", "7", "--workers", "1"]) == 0
    assert verify(shards, capsys)[0] == 0


def test_an_index_that_is_older_than_its_tar_is_told_from_a_damaged_tar(shards: Path, pristine: Path, capsys) -> None:
    (shards / "shard-000001.tar").write_bytes((pristine / "shard-000002.tar").read_bytes())
    err = said(shards, capsys)
    assert "shard-000001.tar: " in err
    (shards / "shard-000001.tar").write_bytes((pristine / "shard-000001.tar").read_bytes())
    tar = shards / "shard-000003.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b'"duration": 0.', b'"duration": 8.', 1))
    before = Index.open(shards).fingerprint
    err = said(shards, capsys)
    assert "shard-000003.tar: intact, but not what was indexed. If it is right, the index is outdated" in err
    assert f"python -m gamut.shards index {shards}" in err
    assert main(["index", str(shards), "--workers", "1"]) == 0
    assert verify(shards, capsys)[0] == 0
    assert Index.open(shards).fingerprint != before  # so a run does not go on with it as if it were the same
    shutil.copy(tar, shards / "stray.tar")
    assert "stray.tar: move it elsewhere" in said(shards, capsys)
    flip(shards / "index" / "size.npy", 200)
    assert "The index is damaged" in said(shards, capsys)


@pytest.mark.parametrize("times", [6, pytest.param(300, marks=pytest.mark.long)])
def test_one_flipped_bit_anywhere_is_found_and_placed(shards: Path, times: int, capsys) -> None:
    chance = random.Random(times)
    files = sorted([*shards.glob("*.tar"), *(shards / "index").glob("*.npy")])
    for _ in range(times):
        path = chance.choice(files)
        content = path.read_bytes()
        at = chance.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :])
        if path.suffix == ".tar":
            status, lines = verify(shards, capsys)
            assert status == 1, (path.name, at)
            assert all(line.startswith(path.name) for line in lines), (path.name, at)
        else:  # the header of an array may be damaged too: then it cannot even be opened
            capsys.readouterr()
            assert main(["verify", str(shards), "--workers", "1"]) in (1, 2), (path.name, at)
            captured = capsys.readouterr()
            assert "gamut.shards index" in captured.out + captured.err, (path.name, at)
        path.write_bytes(content)
    assert verify(shards, capsys)[0] == 0
