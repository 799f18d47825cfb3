"""Data sets that are tables of paths or of segments: csv, ast-json, epic-sounds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from gamut.audio.decode import to_int16_16k
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.convert import SOURCES
from gamut.shards.convert.ast_json import entries

from .layouts import clips, convert, missing, passed_over, sound


def table(path: Path, *rows: tuple[object, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_csv_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    for name in ("a/x.wav", "b/x.wav", "Über, alles.WAV"):
        sound(src / name)
    long = sound(tmp_path / "elsewhere" / "long.flac", 2.0, seed=1)
    (src / "cut.wav").write_bytes((src / "a" / "x.wav").read_bytes()[:500])
    table(
        src / "birds.csv",
        ("path", "labels", "split", "text", "start", "end", "year", "place", "key"),
        ("a/x.wav", "wren; robin", "train", 'it sang, "twice"', "", "", "2001", "Bath", ""),
        ("b/x.wav", "", "train", "", "", "", "-3", "", ""),
        ("Über, alles.wav", "robin;robin", "test", "", "", "", "0", "Köln", ""),
        (tmp_path / "elsewhere" / "long.flac", "wren", "test", "", "0.5", "1.25", "1", "Rome", ""),
        (tmp_path / "elsewhere" / "long.flac", "wren", "test", "", "1.5", "", "1", "Rome", "the end"),
        ("cut.wav", "wren", "train", "", "", "", "1", "Rome", ""),
        ("gone.wav", "wren", "test", "", "", "", "1", "Rome", ""),
        ("b/x.wav", "", "train", "", "", "", "-3", "", ""),
    )
    (src / "birds.csv").write_bytes(b"\xef\xbb\xbf# seen in spring\n" + (src / "birds.csv").read_bytes())
    assert convert("csv", src, dst) == 0
    found = {clip.about["provenance"]["file"] + str(clip.samples): clip for clip in clips(dst).values()}
    first, second = found["a/x.wav800"], found["b/x.wav800"]
    assert (first.labels, first.columns) == (("wren", "robin"), {"split": 1, "year": 2001})
    assert (first.about["text"], first.about["provenance"]["place"]) == ('it sang, "twice"', "Bath")
    assert (second.labels, second.columns) == ((), {"split": 1, "year": -3})
    assert found["Über, alles.wav800"].labels == ("robin",)
    keys = sorted(clips(dst))
    assert keys[-1] == "Über__alles"
    assert [key.partition("-")[0] for key in keys[:-1]] == ["long_0_5", "the_end", "x", "x"]
    segment = found[f"{tmp_path}/elsewhere/long.flac12000"]
    np.testing.assert_array_equal(segment.audio, np.rint(long[8000:20000] * 32768))
    assert (segment.about["provenance"]["start"], segment.about["provenance"]["end"]) == (0.5, 1.25)
    assert found[f"{tmp_path}/elsewhere/long.flac8000"].about["provenance"]["start"] == 1.5
    assert missing(dst) == [("gone", "test")]
    assert passed_over(dst) == {"rows that repeat another": 1}
    assert "1 truncated" in capsys.readouterr().out
    index = Index.open(dst)
    assert (index.name, index.labels) == ("birds", ("robin", "wren"))
    assert len(index.where({"split": ["train"]})) == 2
    assert main(["verify", str(dst), "--workers", "1"]) == 0


def test_csv_of_paths_alone_is_unlabelled(tmp_path: Path) -> None:
    sound(tmp_path / "src" / "x.wav")
    table(tmp_path / "list.csv", ("path",), ("src/x.wav",))
    assert convert("csv", tmp_path / "list.csv", tmp_path / "set") == 0
    index = Index.open(tmp_path / "set")
    assert (index.name, len(index), index.labels, index.columns) == ("list", 1, (), {})


@pytest.mark.parametrize(
    ("splits", "values"),
    [
        (("2", "10", "1"), (2, 10, 1)),
        (("1", "-1", "1"), (1, -1, 1)),
        (("1", "01", "2"), (1, 0, 2)),  # two names of one number: in alphabetical order
        (("2", "train", "1"), (1, 2, 0)),
    ],
)
def test_splits_that_are_numbers_keep_them(tmp_path: Path, splits: tuple[str, ...], values: tuple[int, ...]) -> None:
    rows = [(f"{number}.wav", split) for number, split in enumerate(splits)]
    table(tmp_path / "list.csv", ("path", "split"), *rows)
    listing = SOURCES["csv"]().list(tmp_path / "list.csv")
    assert [one.split for one in listing.records] == list(values)  # type: ignore[union-attr]
    assert listing.names["split"] == {split: (value,) for split, value in zip(splits, values)}


def test_a_row_that_is_there_twice_changes_no_key(tmp_path: Path) -> None:
    sound(tmp_path / "c0.wav")
    sound(tmp_path / "c1.wav")
    table(tmp_path / "list.csv", ("path", "labels"), ("c0.wav", "a"), ("c1.wav", "b"), ("c0.wav", "a"))
    records = SOURCES["csv"]().list(tmp_path / "list.csv").records
    assert [one.key for one in records] == ["c0", "c1"]  # type: ignore[union-attr]


def test_what_is_wrong_with_a_csv_is_a_sentence(tmp_path: Path, capsys) -> None:
    src = tmp_path / "src"
    sound(src / "x.wav")
    for rows, message in (
        ([("file", "labels"), ("x.wav", "a")], "no column path; it has file, labels"),
        ([("path", "labels"), ("x.wav",)], "line 2 has 1 fields, but its header has 2"),
        ([("path", "labels"), ("", "a")], "line 2 has no path"),
        ([("path", "start"), ("x.wav", "soon")], "line 2: start is 'soon'"),
        ([("path", "key"), ("x.wav", "a"), ("./x.wav", "a")], "would both be the clip a"),
        ([("path", "label"), ("x.wav", "a")], "list.csv cannot be called label: these names have a special meaning"),
        ([("path", "share", "seed"), ("x.wav", "1", "2")], "called share, seed: these names have a special meaning"),
        ([], "no column path; it is empty"),
    ):
        table(src / "list.csv", *rows)
        assert convert("csv", src, tmp_path / "set") == 2
        assert message in capsys.readouterr().err
    table(src / "second.csv", ("path",))
    assert convert("csv", src, tmp_path / "set") == 2
    assert "must hold one .csv file, but holds 2 of them: list.csv, second.csv" in capsys.readouterr().err
    assert convert("csv", tmp_path / "nowhere.csv", tmp_path / "set") == 2
    assert "nowhere.csv is not a folder" in capsys.readouterr().err


LABELS = 'index,mid,display_name\n0,/m/07rwj00,"dog"\n1,/m/07rwj01,"rooster, crowing"\n2,/m/07rwj02,"pig"\n'


def data_file(path: Path, *items: tuple[Path | str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"data": [{"wav": str(wav), "labels": labels} for wav, labels in items]}
    path.write_text(json.dumps(content, indent=1))


def test_ast_json_with_a_split_a_file(tmp_path: Path) -> None:
    src, dst = tmp_path / "egs" / "data" / "datafiles", tmp_path / "set"
    for name in ("1-x.wav", "2-x.wav", "3-x.wav", "4-x.wav"):
        sound(tmp_path / "egs" / "data" / "audio_16k" / name)
    (tmp_path / "egs" / "data" / "esc_class_labels_indices.csv").write_text(LABELS)
    absolute = tmp_path / "egs" / "data" / "audio_16k" / "1-x.wav"
    data_file(src / "train.json", (absolute, "/m/07rwj00,/m/07rwj01"), ("./data/audio_16k/2-x.WAV", "/m/07rwj02"))
    data_file(src / "eval.json", ("./data/audio_16k/3-x.wav", ""), ("./data/audio_16k/gone.wav", "/m/07rwj02"))
    assert convert("ast-json", src, dst) == 0
    assert {key: (clip.labels, clip.columns) for key, clip in clips(dst).items()} == {
        "1-x": (("dog", "rooster, crowing"), {"split": 1}),
        "2-x": (("pig",), {"split": 1}),
        "3-x": ((), {"split": 0}),
    }
    assert missing(dst) == [("gone", "eval")]
    assert Index.open(dst).names == {"split": {"eval": [0], "train": [1]}}
    assert convert("ast-json", src / "train.json", tmp_path / "one") == 0
    assert Index.open(tmp_path / "one").name == "train"


def test_ast_json_with_folds_writes_a_clip_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    for name in ("a/x.wav", "b/x.wav", "c/y.wav"):
        sound(src / "audio" / name)
    (src / "class_labels_indices.csv").write_text(LABELS)
    x, other, y = ("audio/a/x.wav", "/m/07rwj00"), ("audio/b/x.wav", "/m/07rwj01"), ("audio/c/y.wav", "/m/07rwj02")
    data_file(src / "train_1.json", x, other, x)
    data_file(src / "train_2.json", x, y)
    data_file(src / "eval_1.json", y)
    assert convert("ast-json", src, dst) == 0
    found = clips(dst)
    assert len(found) == 3
    assert found["y"].columns == {"eval_1": 1, "train_1": 0, "train_2": 1}
    of = {clip.about["provenance"]["file"]: clip.columns for clip in found.values()}
    assert of["audio/a/x.wav"] == {"eval_1": 0, "train_1": 1, "train_2": 1}
    assert len(Index.open(dst).where({"train_1": [1]})) == 2
    assert passed_over(dst) == {"entries that repeat a clip": 3}
    for change, message in (
        (("audio/c/y.wav", "/m/07rwj00"), "different labels from those that it has elsewhere"),
        (("audio/new.wav", "/m/x"), ""),
    ):
        data_file(src / "train_2.json", x, change)
        status = convert("ast-json", src, tmp_path / "other")
        assert (status, message in capsys.readouterr().err) == ((2, True) if message else (0, True))


def test_ast_json_says_what_is_both_trained_and_scored_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "src"
    names = ("train/Yab-_cdefghi.wav", "eval/ab-_cdefghi.wav", "train/01.wav", "eval/01.wav", "both.wav")
    for name in names:
        sound(src / name)
    (src / "class_labels_indices.csv").write_text(LABELS)
    video, again, one, other, both = ((name, "/m/07rwj00") for name in names)
    data_file(src / "balanced_train_data.json", video, one)
    data_file(src / "eval_data.json", other, again)
    assert convert("ast-json", src, tmp_path / "set") == 0
    said = (
        "1 clips of eval_data.json are in balanced_train_data.json, too, such as eval/ab-_cdefghi.wav: what is trained"
    )
    assert said in capsys.readouterr().out
    for file in src.glob("*.json"):
        file.unlink()
    for number, (train, score) in enumerate(((one, both), (both, one)), 1):  # each other's folds: as it should be
        data_file(src / f"esc_train_data_{number}.json", train)
        data_file(src / f"esc_eval_data_{number}.json", score)
    assert convert("ast-json", src, tmp_path / "folds") == 0
    assert "too, such as" not in capsys.readouterr().out
    data_file(src / "esc_eval_data_1.json", one, both)
    assert convert("ast-json", src, tmp_path / "wrong") == 0
    assert (
        "1 clips of esc_eval_data_1.json are in esc_train_data_1.json, too, such as train/01" in capsys.readouterr().out
    )


def test_ast_json_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("gamut.shards.convert.ast_json.BLOCK", 23)
    path = tmp_path / "x.json"
    data_file(path, ("a].wav", "/m/1,/m/2"), ('b"}.wav', ""), ("ü.wav", "/m/1"))
    assert [entry["wav"] for _, entry in entries(path)] == ["a].wav", 'b"}.wav', "ü.wav"]
    whole = path.read_text()
    (tmp_path / "class_labels_indices.csv").write_text(LABELS)
    for content, message in (
        (whole[:-30], "is damaged or cut off after entry"),
        ('{"data": [{"audio": "x"}]}', "entry 0 has no `wav`"),
        ('[{"wav": "x"}]', "does not begin with"),
        ('{"data": []}', "lists no clips"),
    ):
        path.write_text(content)
        assert convert("ast-json", path, tmp_path / "set") == 2
        assert message in capsys.readouterr().err
    (tmp_path / "class_labels_indices.csv").unlink()
    assert convert("ast-json", path, tmp_path / "set") == 2
    assert "There is no *class_labels_indices.csv" in capsys.readouterr().err


HEADER = (
    "annotation_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "start_sample", "stop_sample",
    "description", "class", "class_id",
)  # fmt: skip


def epic(src: Path) -> dict[str, np.ndarray]:
    """Two videos of 4 s at 24 kHz, float32, and segments of them."""
    table(
        src / "EPIC_Sounds_train.csv",
        HEADER,
        ("P01_01_0", "P01", "P01_01", "00:00:00.466", "00:00:01.315", 11184, 31560, "paper, rustle", "rustle", 4),
        ("P01_01_1", "P01", "P01_01", "00:00:01.000", "00:00:04.200", 24000, 100800, "tap", "water", 2),
        ("P01_01_2", "P01", "P01_01", "00:00:09.000", "00:00:10.000", 216000, 240000, "tap", "water", 2),
        ("P22_07_0", "P22", "P22_07", "00:00:01.000", "00:00:02.000", 24000, 48000, "no audio", "water", 2),
    )
    table(
        src / "EPIC_Sounds_validation.csv",
        HEADER,
        ("P02_101_0", "P02", "P02_101", "00:00:00.000", "00:00:00.500", 0, 12000, "clang", "metal-only collision", 0),
        ("P02_101_1", "P02", "P02_101", "00:00:02.000", "00:00:02.000", 48000, 48000, "clang", "water", 2),
    )
    table(
        src / "EPIC_Sounds_recognition_test_timestamps.csv",
        HEADER[:5],
        ("P02_101_9", "P02", "P02_101", "00:00:02.500", "00:00:03.000"),
    )
    rng = np.random.default_rng(0)
    return {video: rng.normal(scale=0.1, size=96000).astype(np.float32) for video in ("P01_01", "P02_101")}


@pytest.mark.parametrize("form", ["hdf5", "int16", "wav", "both"])
def test_epic_sounds(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    videos = epic(src)
    if form == "int16":
        videos = {video: np.rint(audio * 32768).astype(np.int16) for video, audio in videos.items()}
    if form in ("hdf5", "int16", "both"):
        with h5py.File(src / "EPIC_audio.hdf5", "w") as file:
            for video, audio in videos.items():
                if form != "both" or video == "P01_01":
                    file.create_dataset(video, data=audio)
    if form in ("wav", "both"):
        for video, audio in videos.items():
            soundfile.write(src / f"{video}.wav", audio, 24000, subtype="FLOAT")
    assert convert("epic-sounds", src, dst) == 0
    found = clips(dst)
    assert {key: (clip.labels, clip.columns) for key, clip in found.items()} == {
        "P01_01_0": (("rustle",), {"split": 0, "participant": 1}),
        "P01_01_1": (("water",), {"split": 0, "participant": 1}),
        "P02_101_0": (("metal-only collision",), {"split": 1, "participant": 2}),
        "P02_101_9": ((), {"split": 2, "participant": 2}),
    }
    for key, video, first, last in (
        ("P01_01_0", "P01_01", 11184, 31560),
        ("P01_01_1", "P01_01", 24000, 96000),  # a fifth of a second over the end
        ("P02_101_9", "P02_101", 60000, 72000),
    ):
        audio = videos[video][None, first:last]
        audio = audio / np.float32(32768) if form == "int16" else audio
        np.testing.assert_array_equal(found[key].audio, to_int16_16k(audio.astype(np.float32), 24000)[0])
    assert found["P01_01_0"].about["provenance"]["description"] == "paper, rustle"
    assert missing(dst) == [("P22_07_0", "train")]
    assert passed_over(dst) == {"segments that end before they begin": 1}
    assert "1 empty" in capsys.readouterr().out  # the segment at 9 s of 4
    index = Index.open(dst)
    none = [f"(class {label}, without clips)" for label in (1, 3)]
    assert index.labels == ("metal-only collision", none[0], "water", none[1], "rustle")
    assert len(index.where({"split": ["train", "validation"]})) == 3


def test_what_is_wrong_with_epic_sounds_is_a_sentence(tmp_path: Path, capsys) -> None:
    src = tmp_path / "src"
    epic(src)
    assert convert("epic-sounds", src, tmp_path / "set") == 2
    assert "has no HDF5 file or recordings" in capsys.readouterr().err
    (src / "EPIC_audio.hdf5").write_bytes(b"\x89HDF\r\n\x1a\nbroken")
    assert convert("epic-sounds", src, tmp_path / "set") == 2
    assert "cannot be read as HDF5" in capsys.readouterr().err
    (src / "EPIC_audio.hdf5").unlink()
    sound(src / "P01_01.wav", rate=24000)
    rows = (HEADER, ("a", "P01", "P01_01", "0", "1", 0, 24000, "x", "one", 0))
    table(src / "EPIC_Sounds_train.csv", *rows, rows[1])
    (src / "EPIC_Sounds_validation.csv").unlink()
    assert convert("epic-sounds", src, tmp_path / "set") == 2
    assert "the annotation a is listed twice" in capsys.readouterr().err
    table(src / "EPIC_Sounds_train.csv", *rows, ("b", "P01", "P01_01", "0", "1", 0, 24000, "x", "two", 0))
    assert convert("epic-sounds", src, tmp_path / "set") == 2
    assert "class_id 0 is both 'one' and 'two'" in capsys.readouterr().err
    table(src / "EPIC_Sounds_train.csv", rows[0], (*rows[1][:-1], -1))
    assert convert("epic-sounds", src, tmp_path / "set") == 2
    assert "class_id is -1; it must not be below 0" in capsys.readouterr().err
    table(src / "EPIC_Sounds_train.csv", rows[0], (*rows[1][:-1], "1.0"))
    table(src / "EPIC_Sounds_validation.csv", *((*row[:-2], row[-1]) for row in (HEADER, ("b", *rows[1][1:-1], "1"))))
    assert convert("epic-sounds", src, tmp_path / "set") == 2
    assert "class_id 1 is both 'one' and ''" in capsys.readouterr().err
    (src / "EPIC_Sounds_validation.csv").unlink()
    assert convert("epic-sounds", src, tmp_path / "set") == 0
    assert clips(tmp_path / "set")["a"].labels == ("one",)
