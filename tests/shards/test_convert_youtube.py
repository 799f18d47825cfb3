"""AudioSet and VGGSound, as their users have them: official tables, and clips under every downloader's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gamut.errors import ShardError
from gamut.shards import Index
from gamut.shards.convert import SOURCES
from gamut.shards.convert.youtube import Downloads

from .layouts import clips, convert, missing, passed_over, sound

CLASSES = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/0bt9lr,"Dog"
3,/t/dd00126,"Inside, large room or hall"
"""
HEADER = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids={n}, num_segs={n}, num_unique_labels=4\n"
COLUMNS = "# YTID, start_seconds, end_seconds, positive_labels\n"


def segments(path: Path, *rows: tuple[str, float, str]) -> None:
    lines = [f'{video}, {start:.3f}, {start + 10:.3f}, "{mids}"\n' for video, start, mids in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER.format(n=len(rows)) + COLUMNS + "".join(lines))


@pytest.fixture
def audioset(tmp_path: Path) -> Path:
    """Every kind of name; two clips that nobody has any more; one that is not of the set; one broken."""
    src = tmp_path / "AudioSet"
    src.mkdir()
    (src / "class_labels_indices.csv").write_text(CLASSES)
    segments(
        src / "csv" / "balanced_train_segments.csv",
        ("--4gqARaEJE", 0, "/m/068hy,/m/0bt9lr"),  # a label of the ontology that is not among the classes
        ("--BfvyPmVMo", 20, "/m/09x0r,/m/05zppz"),
        ("__private__", 30, "/m/09x0r"),
    )
    segments(
        src / "csv" / "unbalanced_train_segments.csv",
        ("---1_cCGK4M", 0, "/m/09x0r"),
        ("Yes_this_1D", 30.5, "/t/dd00126"),
        ("__0123456_9", 10, "/m/0bt9lr"),
        ("--4gqARaEJE", 0, "/m/0bt9lr"),  # some mirrors' table of all of training
        ("gone_gone_g", 10, "/m/0bt9lr"),
        ("broken_file", 10, "/m/0bt9lr"),
    )
    segments(src / "csv" / "eval_segments.csv", ("--4gqARaEJF", 0, "/m/09x0r"), ("-0-milliseC", 70, "/m/0bt9lr"))
    for name in (
        "balanced/--4gqARaEJE.wav",
        "balanced/--4gqARaEJE.m4a",  # the same clip before somebody converted it
        "balanced/Y--BfvyPmVMo.WAV",
        "unbalanced/part00/---1_cCGK4M_0.000.flac",
        "unbalanced/part00/Yes_this_1D_30.wav",
        "unbalanced/part01/__0123456_9.ogg",
        "eval/id_--4gqARaEJF.wav",
        "eval/-0-milliseC_70000_80000.flac",
        "eval/notofanyset.wav",
        "eval/music.wav",
        "eval/.hidden.wav",
    ):
        path = src / name
        if path.suffix == ".m4a":
            path.write_bytes(b"never opened")
        else:
            sound(path)
    (src / "unbalanced" / "broken_file.wav").write_bytes(b"RIFF")
    (src / "unbalanced" / "log.txt").write_text("done")
    return src


def test_audioset(audioset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "set"
    assert convert("audioset", audioset, dst) == 0
    found = clips(dst)
    assert {key: (clip.labels, clip.columns["split"], clip.columns["start_ms"]) for key, clip in found.items()} == {
        "--4gqARaEJE": (("Dog",), 0, 0),
        "--BfvyPmVMo": (("Speech", "Male speech, man speaking"), 0, 20000),
        "---1_cCGK4M": (("Speech",), 1, 0),
        "Yes_this_1D": (("Inside, large room or hall",), 1, 30500),
        "Y__0123456_9": (("Dog",), 1, 10000),
        "--4gqARaEJF": (("Speech",), 2, 0),
        "-0-milliseC": (("Dog",), 2, 70000),
    }
    assert found["--4gqARaEJE"].about["provenance"]["file"] == "balanced/--4gqARaEJE.wav"
    assert found["Y__0123456_9"].about["provenance"]["ytid"] == "__0123456_9"
    assert missing(dst) == [("Y__private__", "balanced"), ("gone_gone_g", "unbalanced")]
    assert passed_over(dst) == {
        "repeated clips": 1,
        "labels missing in the class table": 1,
        ".txt files": 1,
        "sound files not named after a video": 1,
        "sound files of clips that no table lists": 1,
        "further files of one clip": 1,
    }
    out = capsys.readouterr().out
    assert "missing: 2 clips that the data set lists" in out
    assert "1 unreadable" in out
    index = Index.open(dst)
    counts = {name: len(index.where({"split": [name]})) for name in index.names["split"]}
    assert counts == {"as-20k": 2, "as-2m": 5, "balanced": 2, "unbalanced": 3, "evaluation": 2}
    assert [len({c.columns["split"] for c in found.values() if c.shard == shard}) for shard in range(3)] == [1, 1, 1]


def test_the_splits_that_one_has_or_wants(audioset: Path, tmp_path: Path, capsys) -> None:
    assert convert("audioset", audioset, tmp_path / "small", "--only", "as-20k", "evaluation") == 0
    assert {clip.columns["split"] for clip in clips(tmp_path / "small").values()} == {0, 2}
    assert missing(tmp_path / "small") == [("Y__private__", "balanced")]
    (audioset / "csv" / "unbalanced_train_segments.csv").unlink()
    (audioset / "csv" / "eval_segments.csv").unlink()
    assert convert("audioset", audioset, tmp_path / "balanced") == 0
    assert Index.open(tmp_path / "balanced").names == {"split": {"as-20k": [0], "as-2m": [0, 1], "balanced": [0]}}
    assert convert("audioset", audioset, tmp_path / "x", "--only", "evaluation") == 2
    assert "no split evaluation; it has as-20k, as-2m, balanced" in capsys.readouterr().err


def test_a_clip_of_training_and_evaluation_is_refused(audioset: Path, tmp_path: Path, capsys) -> None:
    segments(audioset / "csv" / "eval_segments.csv", ("---1_cCGK4M", 0, "/m/09x0r"))
    assert convert("audioset", audioset, tmp_path / "set") == 2
    assert "---1_cCGK4M is also in eval_segments.csv" in capsys.readouterr().err


def test_what_is_wrong_with_audiosets_tables_is_a_sentence(audioset: Path, tmp_path: Path, capsys) -> None:
    table = audioset / "csv" / "balanced_train_segments.csv"
    for content, message in (
        ("--4gqARaEJE, zero, 10.000, /m/0bt9lr\n", "line 1: start_seconds is 'zero', which is not a number"),
        ("--4gqARaEJE, 0.000, 10.000\n", "line 1 has 3 fields, but needs 4"),
        ("\xff", "is not UTF-8"),
    ):
        table.write_text(content, encoding="latin-1")
        assert convert("audioset", audioset, tmp_path / "set") == 2
        assert message in capsys.readouterr().err
    (audioset / "class_labels_indices.csv").write_text("index,mid,display_name\n1,/m/09x0r,Speech\n")
    assert convert("audioset", audioset, tmp_path / "set") == 2
    assert "out of order" in capsys.readouterr().err
    (audioset / "class_labels_indices.csv").unlink()
    assert convert("audioset", audioset, tmp_path / "set") == 2
    assert "no class_labels_indices.csv" in capsys.readouterr().err
    with pytest.raises(ShardError, match=r"balanced_train_segments\.csv or unbalanced"):
        SOURCES["audioset"]().list(tmp_path / "set")


def test_a_folder_without_the_clips_is_told_at_once(audioset: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "tables").mkdir()
    for table in audioset.rglob("*.csv"):
        (tmp_path / "tables" / table.name).write_bytes(table.read_bytes())
    assert convert("audioset", tmp_path / "tables", tmp_path / "set") == 2
    said = capsys.readouterr().err
    assert "None of the 11 clips of audioset was found" in said
    assert "Is SRC the right folder?" in said
    assert not list((tmp_path / "set").rglob("*.tar"))


def test_a_folder_is_listed_and_its_files_are_not_asked(audioset: Path, tmp_path: Path, monkeypatch) -> None:
    import os

    asked: list[str] = []
    real = os.stat

    def stat(path, *more, **how):
        asked.append(str(path))
        return real(path, *more, **how)

    monkeypatch.setattr(os, "stat", stat)
    listing = SOURCES["audioset"]().list(audioset)
    assert len(list(listing.records)) == 10
    assert not [path for path in asked if Path(path).suffix in (".wav", ".flac", ".ogg", ".m4a")]


def test_which_of_several_files_is_the_clip(tmp_path: Path) -> None:
    for name in ("a/abcdefghijk_10.mp3", "b/abcdefghijk_10.flac", "abcdefghijk_30000_40000.wav", "Zbcdefghijk.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    downloads = Downloads(tmp_path)
    assert downloads.take("abcdefghijk", 10, strict=True) == ("b/abcdefghijk_10.flac", False)
    assert downloads.take("abcdefghijk", 10, strict=True) == ("b/abcdefghijk_10.flac", True)
    assert downloads.take("abcdefghijk", 30, strict=True) == ("abcdefghijk_30000_40000.wav", False)
    assert downloads.take("abcdefghijk", 50, strict=True) is None
    assert downloads.take("abcdefghijk", 50, strict=False) == ("abcdefghijk_30000_40000.wav", True)
    assert downloads.take("Zbcdefghijk", 50, strict=True) == ("Zbcdefghijk.wav", False)
    assert downloads.take("Abcdefghijk", 0, strict=False) is None
    assert downloads.rest() == {"further files of one clip": 1}


VGGSOUND = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,"bird chirping, tweeting",train
--0PQM4-hqg,130,dog barking,train
--56QUhyDQM,185,playing tennis,train
--gone_gone,5,dog barking,test
--0PQM4-hqg,30,"bird chirping, tweeting",train
"""


def test_vggsound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    for name in ("---g-f_I2yQ_000001.wav", "--0PQM4-hqg_30.flac", "--0PQM4-hqg_130_140.flac", "--56QUhyDQM.OGG"):
        sound(src / "audio" / name, format="OGG") if name.endswith("OGG") else sound(src / "audio" / name)
    (src / "vggsound.csv").write_text(VGGSOUND)
    assert convert("vggsound", src, dst) == 0
    assert {key: (clip.labels, clip.columns) for key, clip in clips(dst).items()} == {
        "---g-f_I2yQ_000001": (("people marching",), {"split": 1, "start_ms": 1000}),
        "--0PQM4-hqg_000030": (("bird chirping, tweeting",), {"split": 0, "start_ms": 30000}),
        "--0PQM4-hqg_000130": (("dog barking",), {"split": 0, "start_ms": 130000}),
        "--56QUhyDQM_000185": (("playing tennis",), {"split": 0, "start_ms": 185000}),
    }
    assert missing(dst) == [("--gone_gone_000005", "test")]
    assert passed_over(dst) == {"repeated clips": 1}
    index = Index.open(dst)
    assert index.labels == ("bird chirping, tweeting", "dog barking", "people marching", "playing tennis")
    assert len(index.where({"split": ["test"]})) == 1
    assert json.loads((dst / "index" / "convert.json").read_bytes())["names"] == {"split": {"train": [0], "test": [1]}}
    for row, message in (
        ("--0PQM4-hqg,30,dog barking,train\n", "listed twice"),
        ("--0PQM4-hqg,31,dog barking,valid\n", "the split is 'valid'"),
        ("--56QUhyDQM,7,dog barking,train\n", "would be two clips"),
    ):
        (src / "vggsound.csv").write_text(VGGSOUND + row)
        assert convert("vggsound", src, tmp_path / "other") == 2
        assert message in capsys.readouterr().err
