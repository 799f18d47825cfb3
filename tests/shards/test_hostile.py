"""Names that somebody chose to lead elsewhere: in tables, tars and keys they are names and nothing more."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.convert.source import key_of

from .layouts import clips, convert, sound

NAMES = [
    "/etc/x",
    "//x",
    "../../x",
    "..",
    "a/../../x",
    "a\\b",
    "-rf",
    "~root",
    "$(touch owned)",
    "c\0d",
    "\x1b[2J",
    "/n//m/",
]


def test_keys_of_a_table_are_no_paths(tmp_path: Path) -> None:
    sound(tmp_path / "in" / "a.wav")
    rows = [f'a.wav,"{name}",{number}' for number, name in enumerate(NAMES)]
    (tmp_path / "in" / "x.csv").write_bytes("\n".join(["path,key,n", *rows]).encode())
    assert convert("csv", tmp_path / "in" / "x.csv", tmp_path / "set") == 0
    assert len(clips(tmp_path / "set")) == len(NAMES)
    index = Index.open(tmp_path / "set")
    for shard in range(len(index.shards)):
        with tarfile.open(index.shard_path(shard)) as tar:
            for name in tar.getnames():
                assert name.isprintable()
                assert not name.startswith("/")
                assert not {"..", "", "."} & set(name.split("/"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "set"]
    assert key_of("//") == "-"


def test_paths_of_a_table_that_lead_nowhere_are_missing_and_no_sound_is_left_out(tmp_path: Path) -> None:
    sound(tmp_path / "in" / "a.wav")
    paths = ["a.wav", "a\0b/x.wav", "x\0.wav", "/etc/passwd", "../../../../../../etc/passwd", "~/x.wav"]
    (tmp_path / "in" / "x.csv").write_bytes("\n".join(["path", *(f'"{path}"' for path in paths)]).encode())
    assert convert("csv", tmp_path / "in" / "x.csv", tmp_path / "set") == 0
    assert sorted(clips(tmp_path / "set")) == ["a"]
    quarantine = (tmp_path / "set" / "index" / "quarantine.json").read_text()
    assert '"unreadable": 2' in quarantine
    assert '"missing": 3' in quarantine


@pytest.mark.parametrize("key", ["../../x", "/tmp/x", "a/b", "-rf", "~"])
def test_the_picture_of_a_clip_stays_in_this_folder(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(tmp_path / "a.wav", 0.3)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "deep" / "here").mkdir(parents=True)
    with tarfile.open(tmp_path / "deep" / "x.tar", "w") as tar:
        member = tarfile.TarInfo(f"{key}.wav")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    before = set(tmp_path.rglob("*"))
    assert main(["index", str(tmp_path / "deep"), "--workers", "1", "--labels", "none"]) == 0
    monkeypatch.chdir(tmp_path / "deep" / "here")
    assert main(["show", str(tmp_path / "deep"), "--", key]) == 0
    made = {path for path in set(tmp_path.rglob("*")) - before if "index" not in path.parts}
    assert {path.parent for path in made} == {tmp_path / "deep" / "here"}
