"""What a person sees who types something wrong: one sentence, exit status 2, no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gamut.commands import ROOT
from gamut.errors import ShardError
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.convert import SOURCES
from gamut.shards.convert.source import clips_a_shard, key_of, shard_order, unique_keys

HEADER = "filename,fold,target,category,esc10,src_file,take\n"


@pytest.mark.parametrize("arguments", [[], ["convert"], ["index"], ["verify"], ["stats"], ["show"]])
def test_help_has_an_example(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "example" in out
    assert f"python -m gamut.shards {(arguments or ['convert'])[0]} " in out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["melt", "x"],
        ["convert", "esc51", "a", "b"],
        ["convert", "esc50", "a"],
        ["verify", "x", "--workers", "0"],
        ["convert", "folder", "a", "b", "--clips-per-shard", "many"],
        ["convert", "folder", "a", "b", "--on-error", "cry"],
    ],
)
def test_a_wrong_command_line_exits_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m gamut.shards" in capsys.readouterr().err


def sentence(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_wrong_folders(tmp_path: Path, sounds: Path, capsys) -> None:
    dst = tmp_path / "set"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "x.txt").write_text("x")
    assert "nowhere is not a folder" in sentence(capsys, "convert", "folder", tmp_path / "nowhere", dst)
    assert "file is not a folder" in sentence(capsys, "convert", "folder", tmp_path / "file", dst)
    assert "found: nothing" in sentence(capsys, "convert", "folder", tmp_path / "empty", dst)
    assert "found: 1 .txt files" in sentence(capsys, "convert", "folder", tmp_path / "texts", dst)
    assert "SRC itself" in sentence(capsys, "convert", "folder", sounds, sounds)
    assert "not a folder" in sentence(capsys, "convert", "folder", sounds, tmp_path / "file")
    assert "it has no audio" in sentence(capsys, "convert", "esc50", sounds, dst)
    for command in ("verify", "stats", "index"):
        assert "python -m gamut.shards convert" in sentence(capsys, command, tmp_path / "empty")
    assert not dst.exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "no column filename, fold, target, category"),
        ("filename,fold\nx.wav,1\n", "no column target, category"),
        (HEADER + "x.wav,one,0,dog,True,1,A\n", "line 2: fold is 'one', which is not a number"),
        (HEADER + "x.wav,1\n", "line 2 has 2 fields, but its header has 7"),
        (HEADER + "../x.wav,1,0,dog,True,1,A\n", "line 2: '../x.wav' is not the name of a file"),
        (HEADER + "x.wav,1,0,dog,True,1,A\ny.wav,1,0,cat,True,1,A\n", "target 0 is both dog and cat"),
        (HEADER + "x.wav,1,0,dog,True,1,A\nx.ogg,1,0,dog,True,1,A\n", "would both be the clip x"),
        (HEADER, "no clips"),
    ],
)
def test_a_wrong_esc50_table(tmp_path: Path, table: str, message: str, capsys) -> None:
    (tmp_path / "src" / "audio").mkdir(parents=True)
    (tmp_path / "src" / "meta").mkdir()
    (tmp_path / "src" / "meta" / "esc50.csv").write_text(table)
    assert re.search(message, sentence(capsys, "convert", "esc50", tmp_path / "src", tmp_path / "set"))


def test_a_table_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_bytes(HEADER.encode() + b"\xff\xfe.wav,1,0,dog,True,1,A\n")
    with pytest.raises(ShardError, match=r"esc50\.csv is not UTF-8 text"):
        SOURCES["esc50"]().list(tmp_path)


def test_the_command_runs_as_a_module(pristine: Path) -> None:
    command = [sys.executable, "-m", "gamut.shards", "verify", str(pristine), "--workers", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "24 clips in 4 shards are as they were written\n")


def test_keys() -> None:
    assert key_of("dog/1-100032-A-0") == "dog/1-100032-A-0"
    assert key_of("../a b.c/__init__") == "-/a_b_c/-init__"
    assert "." not in key_of("...")
    paths = ["a/x.wav", "a/y.wav", "a/y.mp3", "b/y.wav", "a/no_ending", "\udcff/x.wav"]
    keys = unique_keys(paths)
    assert len(set(keys)) == len(paths)
    assert keys[0] == "a/x"
    assert keys[3] == "b/y"
    assert unique_keys(paths[::-1]) == keys[::-1]  # a key does not depend on the others' order


def test_shard_order_is_that_of_the_keys_alone() -> None:
    keys = [f"clip{number}" for number in range(100)]
    assert sorted(keys, key=shard_order) != keys
    assert len({shard_order(key) for key in keys}) == 100
    assert [clips_a_shard(n) for n in (1, 400, 3200, 3201, 10**6)] == [50, 50, 50, 51, 1000]


MINE = """
from gamut.shards.convert import SOURCES, Listing, Record, Source

@SOURCES.register("mydata")
class MyData(Source):
    expects = "any .wav in one folder"

    def list(self, folder):
        files = sorted(folder.rglob("*.wav"))
        records = [Record(f"clip-{n}", file, labels=(n % 2,)) for n, file in enumerate(files)]
        return Listing("mydata", ("even", "odd"), (), records)
"""


@pytest.mark.parametrize("registered", ["GAMUT_PLUGINS", "gamut.plugins"])
def test_a_data_set_from_outside_is_one_file_and_one_line(sounds: Path, tmp_path: Path, registered: str) -> None:
    (tmp_path / "my_module.py").write_text(MINE)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": os.environ["PATH"]}
    if registered == "GAMUT_PLUGINS":
        environment["GAMUT_PLUGINS"] = "my_module"
    else:
        package = tmp_path / "mine-1.0.dist-info"
        package.mkdir()
        (package / "METADATA").write_text("Name: mine\nVersion: 1.0")
        (package / "entry_points.txt").write_text("[gamut.plugins]\nmine = my_module")

    def gamut(*words: object) -> str:
        line = [sys.executable, "-m", "launchers.console", "shards", *map(str, words)]
        done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mydata: any .wav in one folder" in " ".join(gamut("convert", "--help").split())
    gamut("convert", "mydata", sounds, tmp_path / "set", "--workers", 2)
    index = Index.open(tmp_path / "set")
    assert (index.name, index.labels, len(index)) == ("mydata", ("even", "odd"), len(list(sounds.rglob("*.wav"))))
    assert {index.key(row): int(index.label_ids(row)[0]) for row in range(2)} == {
        key: int(key.removeprefix("clip-")) % 2 for key in (index.key(0), index.key(1))
    }
    assert "as they were written" in gamut("verify", tmp_path / "set")
