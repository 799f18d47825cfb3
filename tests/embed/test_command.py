"""python -m gamut.embed: what it writes, what it leaves out, and how it goes on."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import gamut
from gamut import files as durable
from gamut.embed import parts
from gamut.embed.__main__ import main

KILLED = """
import os, signal, sys
from gamut.embed import model, parts
parts.FILES = model.BATCH = 1
import gamut.embed.run as run
run.BATCH = 1
whole, calls = model.Model.encode, []
def encode(self, sounds, level):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, sounds, level)
model.Model.encode = encode
from gamut.embed.__main__ import main
main(sys.argv[1:])
"""


@pytest.fixture
def folder(files: list[Path], tmp_path: Path) -> Path:
    """Three sounds, and a text that has the name of one."""
    shutil.copytree(files[0].parent, tmp_path / "in")
    (tmp_path / "in" / "text.wav").write_text("no sound")
    (tmp_path / "in" / "notes.txt").write_text("passed over")
    return tmp_path / "in"


def line(*words: object) -> list[str]:
    return [str(word) for word in words]


def test_vectors_are_those_of_python_and_what_is_no_sound_is_named(
    folder: Path, asit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.npz"
    assert main(line(asit, folder, folder / "a.wav", "--out", out)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "named more than once, embedded once" in said.err
    assert f"error: {folder / 'text.wav'} is not a sound file" in said.err
    assert "clip embeddings of 3 files, float32 3 x 32" in said.err
    assert "1 of 4 files could not be read" in said.err
    names = [str(folder / name) for name in ("a.wav", "b.flac", "c.wav")]
    with np.load(out) as found:
        assert found["files"].tolist() == names
        assert np.array_equal(found["values"], gamut.load(asit).embed(names))
        about = json.loads(str(found["about"]))
    assert about["level"] == "clip"
    assert list(about["failed"]) == [str(folder / "text.wav")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.npz"]
    assert main(line(asit, folder / "text.wav", "--out", tmp_path / "y.npz")) == 2
    assert "None of the files could be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.npz"]


@pytest.mark.parametrize("level", ["clip", "frame", "layer", "patch"])
def test_every_kind_of_file_holds_the_same(level: str, files: list[Path], asit: Path, tmp_path: Path) -> None:
    for ending in ("npz", "safetensors", "parquet"):
        assert main(line(asit, *files, "--level", level, "--out", tmp_path / f"x.{ending}")) == 0
    expected = gamut.load(asit).embed(files, level=level)  # type: ignore[call-overload]
    npz = dict(np.load(tmp_path / "x.npz"))
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert json.loads(file.metadata()["files"]) == [*map(str, files)]
        for name in file.keys():  # noqa: SIM118
            assert np.array_equal(file.get_tensor(name), npz[name])
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    assert np.array_equal(np.array(table["vector"], np.float32), npz["values"].reshape(len(table["file"]), -1))
    if level == "clip":
        assert np.array_equal(npz["values"], expected)
        assert table["file"] == [*map(str, files)]
        return
    assert npz["offset"].tolist() == [0, *np.cumsum([len(one.times) for one in expected])]
    for number, one in enumerate(expected):
        own = slice(*npz["offset"][number : number + 2])
        assert np.array_equal(npz["times"][own], one.times)
        values = npz["values"][own]
        assert np.array_equal(values.swapaxes(0, 1) if level == "layer" else values, one.values)
    each = {"frame": 1, "layer": 2, "patch": 8}[level]
    assert np.array_equal(table["time"], np.repeat(npz["times"], each))
    if each > 1:
        assert table["band" if level == "patch" else "layer"][: each + 1] == [*range(each), 0]


def test_after_a_kill_it_goes_on_where_it_was(
    files: list[Path], asit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.npz"
    words = line(asit, *files, "--out", out)
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, timeout=500)
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    assert main([*words[:-1], str(tmp_path / "other.npz")]) == 0
    assert main([*words, "--level", "frame"]) == 2
    assert "x.npz.parts holds what another command has embedded so far (level differ)" in capsys.readouterr().err
    assert main(words) == 0
    assert "2 of 3 files are done; going on" in capsys.readouterr().err
    assert np.array_equal(np.load(out)["values"], np.load(tmp_path / "other.npz")["values"])
    assert not (tmp_path / "x.npz.parts").exists()


def test_what_changed_meanwhile_or_is_damaged_is_embedded_again(
    folder: Path, asit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, names = tmp_path / "x.npz", [folder / name for name in ("a.wav", "b.flac", "c.wav")]
    monkeypatch.setattr(parts, "FILES", 1)

    def full(action: str, path: Path) -> None:
        if path == out:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "hook", full)
    assert main(line(asit, *names, "--out", out)) == 2
    assert "x.npz cannot be written: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    kept = sorted((tmp_path / "x.npz.parts").glob("*.safetensors"))
    assert [path.stem for path in kept] == ["000000", "000001", "000002"]
    shutil.copy(names[2], names[0])
    kept[1].write_bytes(kept[1].read_bytes()[:-100])
    assert main(line(asit, *names, "--out", out)) == 0
    assert "1 of 3 files are done; going on" in capsys.readouterr().err
    values = np.load(out)["values"]
    assert np.array_equal(values, gamut.load(asit).embed(names))
    assert np.array_equal(values[0], values[2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "{tmp}/x.npy"], "must be one of .npz, .parquet, .safetensors; the nearest valid name is .npz"),
        (["--out", "{tmp}/x"], "must be one of .npz, .parquet, .safetensors"),
        (["--out", "{tmp}/none/x.npz"], "There is no folder"),
        (["--out", "/proc/x.npz"], "/proc/x.npz cannot be written"),
        (["--out", "{tmp}/there.npz"], "is there already: remove it"),
        (["--out", "{tmp}/x.npz", "--set", "heads"], "--set heads: write KEY=NUMBER"),
        (["--out", "{tmp}/x.npz", "--set", "heads=2"], "says which model it is of"),
    ],
)
def test_a_line_that_cannot_be_is_refused_before_the_work(
    words: list[str], said: str, files: list[Path], asit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.npz").write_bytes(b"something dear")
    assert main([str(asit), str(files[0]), *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "there.npz").read_bytes() == b"something dear"
    assert not list(tmp_path.glob("*.parts/*.safetensors"))


def test_two_at_once_into_one_file(files: list[Path], asit: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "x.npz"
    about = gamut.load(asit).decides | {"level": "clip"}
    with parts.Parts(out, about):
        assert main(line(asit, files[0], "--out", out)) == 2
    assert "Another process is embedding into" in capsys.readouterr().err
    assert main(line(asit, files[0], "--out", out)) == 0
