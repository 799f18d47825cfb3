"""A conversion in many jobs: its bytes are those of one, whatever the number of jobs, and whoever is killed."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from gamut.errors import ShardError
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.build import only_writer
from gamut.shards.convert import SOURCES
from gamut.shards.convert.folds import with_folds
from gamut.shards.convert.manifest import write_manifest
from gamut.shards.convert.run import finish, prepare, preview, write_share
from gamut.shards.convert.source import Listing, Missing, Record
from gamut.shards.folds import FOLDS

from .conftest import write_sounds
from .test_resume import contents, in_a_child


def begin(sounds: Path, folder: Path) -> None:
    listing = with_folds(lambda: SOURCES["folder"]().list(sounds), FOLDS)  # as the command has it by default
    prepare("folder", listing, folder, clips_per_shard=7)


@pytest.mark.parametrize("shares", [1, 3, 9])
def test_shares_make_the_bytes_of_one_command(sounds: Path, pristine: Path, tmp_path: Path, shares: int) -> None:
    folder = tmp_path / "set"
    begin(sounds, folder)
    order = list(range(shares))
    random.Random(shares).shuffle(order)
    for number in order:
        write_share(folder, number, shares)
    report = finish(folder)
    assert (report.clips, report.shards, report.missing) == (24, 4, 0)
    assert contents(folder) == contents(pristine)


def test_an_unfinished_share_is_named_and_goes_on(sounds: Path, pristine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    begin(sounds, folder)
    write_share(folder, 0, 2)
    with pytest.raises(ShardError, match=r"2 of the 4 shards .* are missing, the first of them shard-000001\.tar"):
        finish(folder)
    assert not (folder / "index" / "index.json").exists()
    before = (folder / "shard-000000.tar").stat().st_mtime_ns
    begin(sounds, folder)  # the same command once more
    for number in range(2):
        write_share(folder, number, 2)
    assert finish(folder).already == 2
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == before
    assert contents(folder) == contents(pristine)


def test_kills_in_any_share_leave_nothing_wrong(sounds: Path, pristine: Path, tmp_path: Path) -> None:
    """Two shares at once, each killed at one of its writes again and again, as a queue would preempt them."""
    folder = tmp_path / "set"
    begin(sounds, folder)
    draw = random.Random(0)
    kills = 0
    for number in (0, 1, 0, 1, 0, 1):
        left = draw.randrange(8)

        def killed(left: int = left, number: int = number) -> None:
            real = os.fsync

            def fsync(descriptor: int) -> None:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                real(descriptor)

            os.fsync = fsync
            with only_writer(folder, with_others=True):  # another share is at work all the time
                write_share(folder, number, 2)

        kills += os.WIFSIGNALED(in_a_child(killed))
    assert kills >= 3
    for number in (0, 1):
        write_share(folder, number, 2)
    assert not list(folder.rglob("*.partial"))
    finish(folder)
    assert contents(folder) == contents(pristine)


def test_shares_do_not_meet_another_command(sounds: Path, pristine: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "set"
    with pytest.raises(ShardError, match="No conversion is under way"):
        write_share(folder, 0, 1)
    begin(sounds, folder)
    with pytest.raises(ShardError, match="another conversion: its name is"):
        prepare("folder", SOURCES["folder"]().list(sounds).renamed("other"), folder, clips_per_shard=7)
    with only_writer(folder, with_others=True):
        command = ["convert", "folder", str(sounds), str(folder), "--clips-per-shard", "7", "--workers", "1"]
        assert main(command) == 2
        assert "Another process is writing shards" in capsys.readouterr().err
        with pytest.raises(ShardError, match="Another process"):
            finish(folder)
        write_share(folder, 0, 1)
    assert main(command) == 0
    assert contents(folder) == contents(pristine)


def listing(count: int, *extra: Record | Missing) -> Listing:
    made = (Record(f"clip{n}", f"/nowhere/{n}.wav", (n % 3,), columns={"split": n % 2}) for n in range(count))
    return Listing("made", ("a", "b", "c"), ("split",), [*made, *extra], names={"split": {"x": [0], "y": [1]}})


def test_a_manifest_is_in_shard_order_with_shards_of_one_split(tmp_path: Path) -> None:
    manifest = write_manifest(listing(25, Missing("gone", 'a "file", gone', 1)), tmp_path / "one", 4)
    assert [clips for _, clips in manifest.shards] == [4, 4, 4, 1, 4, 4, 4]
    records = [list(manifest.stretch(shard).records()) for shard in range(7)]
    assert [{record.columns["split"] for record in shard} for shard in records] == [{0}] * 4 + [{1}] * 3
    assert sorted(record.key for shard in records for record in shard) == sorted(f"clip{n}" for n in range(25))
    assert (tmp_path / "one" / "missing.csv").read_text() == 'clip,split,file\ngone,y,"a ""file"", gone"\n'
    backwards = Listing("made", ("a",), ("split",), listing(25).records[::-1])  # type: ignore[index]
    again = write_manifest(backwards, tmp_path / "two", 4)
    assert (again.digest, again.shards) == (manifest.digest, manifest.shards)
    assert (tmp_path / "two" / "records.jsonl").read_bytes() == (tmp_path / "one" / "records.jsonl").read_bytes()
    assert not (tmp_path / "two" / "missing.csv").exists()


def test_a_key_that_two_files_have_is_refused_across_splits(tmp_path: Path) -> None:
    twice = Record("clip3", "/elsewhere/3.wav", (), columns={"split": 0})
    with pytest.raises(ShardError, match=r"/nowhere/3\.wav and /elsewhere/3\.wav would both be the clip clip3"):
        write_manifest(listing(5, twice), tmp_path)


def test_only_some_splits(tmp_path: Path) -> None:
    with preview(listing(25, Missing("gone", "x", 1)).only(["x"])) as manifest:
        assert (manifest.clips, manifest.missing) == (13, 0)
    assert not manifest.folder.exists()
    with pytest.raises(ShardError, match="made has no split z; it has x, y"):
        listing(3).only(["z"])


def test_a_part_of_shards_that_is_gone_is_counted_by_index(tmp_path: Path, capsys) -> None:
    write_sounds(tmp_path / "src", clips=10)
    command = ["convert", "folder", str(tmp_path / "src"), str(tmp_path / "set"), "--clips-per-shard", "3"]
    assert main([*command, "--workers", "1"]) == 0
    (tmp_path / "set" / "shard-000003.tar").unlink()
    assert main(["index", str(tmp_path / "set"), "--workers", "1"]) == 0
    assert "1 shards of the conversion are missing" in capsys.readouterr().err
    assert len(Index.open(tmp_path / "set")) == 9
