"""Speech Commands, VoxCeleb1 and LibriSpeech, as they unpack."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.shards import Index
from gamut.shards.convert import SOURCES
from gamut.shards.convert.source import Record
from gamut.shards.convert.speechcommands import COMMANDS

from .layouts import clips, convert, missing, passed_over, sound


def words(src: Path, names: tuple[str, ...], speakers: int) -> None:
    """A speaker in ten is for validation, another for testing, as the lists have it."""
    lists: dict[int, list[str]] = {0: [], 1: []}
    for word in names:
        for speaker in range(speakers):
            name = f"{word}/{speaker:08x}_nohash_{speaker % 2}.wav"
            sound(src / name, 0.02, seed=speaker)
            if speaker % 10 in lists:
                lists[speaker % 10].append(name)
    (src / "validation_list.txt").write_text("\n".join(lists[0]) + "\n")
    (src / "testing_list.txt").write_text("\n".join(lists[1]) + "\n")
    sound(src / "_background_noise_" / "white_noise.wav", 2.5, seed=7)
    sound(src / "_background_noise_" / "doing_the_dishes.wav", 1.5, seed=8)
    (src / "_background_noise_" / "README.md").write_text("noise")


def test_speech_commands_v2_has_a_class_a_word_and_the_official_lists(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    words(src, ("backward", "go", "no", "yes", "stop"), 4)
    (src / "go" / "odd name (1).WAV").write_bytes((src / "go" / "00000000_nohash_0.wav").read_bytes())
    (src / "go" / "cut.wav").write_bytes((src / "go" / "00000000_nohash_0.wav").read_bytes()[:200])
    (src / "go" / "notes.txt").write_text("x")
    with open(src / "testing_list.txt", "a") as file:
        file.write("bird/00000001_nohash_1.wav\n")  # a copy with some of the words only
    assert convert("speechcommands", src, dst) == 0
    found = clips(dst)
    assert Index.open(dst).labels == ("backward", "go", "no", "stop", "yes")
    assert len(found) == 4 * 5 + 1
    assert all(clip.labels == (key.split("/")[0],) for key, clip in found.items())
    assert found["go/00000000_nohash_0"].columns == {"split": 1, "take": 0}
    assert found["yes/00000001_nohash_1"].columns == {"split": 2, "take": 1}
    assert found["yes/00000003_nohash_1"].columns == {"split": 0, "take": 1}
    assert found["go/odd_name__1_"].columns == {"split": 0, "take": -1}
    assert missing(dst) == [("bird/00000001_nohash_1", "test")]
    assert passed_over(dst) == {"files that are not sound": 1}
    index = Index.open(dst)
    assert [len(index.where({"split": [name]})) for name in ("train", "validation", "test")] == [11, 5, 5]


def test_speech_commands_v1_is_ten_words_unknown_and_silence(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    words(src, (*COMMANDS, "bed", "cat"), 12)
    assert convert("speechcommands", src, dst) == 0
    found = clips(dst)
    assert Index.open(dst).labels == ("_silence_", "_unknown_", *COMMANDS)
    counts = Counter((clip.columns["split"], clip.labels[0]) for clip in found.values())
    for split, wanted in ((0, 80), (1, 20), (2, 20)):  # speakers 0 and 10 of 12, and 1 and 11, are held out
        assert sum(count for (at, label), count in counts.items() if at == split and label in COMMANDS) == wanted
        assert counts[split, "_silence_"] == counts[split, "_unknown_"] == wanted // 10
    assert passed_over(dst)["recordings of unknown words beyond the tenth that the recipe takes"] == 24 - 12
    noises = {path.name: soundfile.read(path)[0] for path in (src / "_background_noise_").glob("*.wav")}
    silences = {key: clip for key, clip in found.items() if clip.labels == ("_silence_",)}
    assert len({clip.about["provenance"]["start"] for clip in silences.values()}) == 12
    for clip in silences.values():
        made = clip.about["provenance"]
        noise = noises[os.path.basename(made["file"])]
        first = round(made["start"] * 16000)
        assert clip.samples == 16000
        piece = noise[first : first + 16000] * 32768
        volume = float(clip.audio @ piece / (piece @ piece))
        assert 0 <= volume < 1
        assert np.abs(clip.audio - volume * piece).max() < 1
    again = {one.key: one for one in SOURCES["speechcommands"]().list(src).records if isinstance(one, Record)}
    assert again.keys() == found.keys()
    assert all(again[key].segment.start == clip.about["provenance"]["start"] for key, clip in silences.items())


def test_speech_commands_layout_of_the_spoken_digits(shared_data: Path) -> None:
    listing = SOURCES["speechcommands"]().list(shared_data / "fsdd")
    assert listing.labels == ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")
    records = [one for one in listing.records if isinstance(one, Record)]
    assert Counter(record.columns["split"] for record in records) == {0: 2400, 1: 300, 2: 300}
    takes = {record.columns["take"] for record in records if record.columns["split"] == 2}
    assert takes == {0, 1, 2, 3, 4}


@pytest.mark.long
def test_the_spoken_digits_convert(shared_data: Path, tmp_path: Path) -> None:
    assert convert("speechcommands", shared_data / "fsdd", tmp_path / "set") == 0
    assert len(Index.open(tmp_path / "set")) == 3000


def test_what_is_not_speech_commands_is_a_sentence(tmp_path: Path, capsys) -> None:
    words(tmp_path / "src", (*COMMANDS, "cat"), 2)
    for path in (tmp_path / "src" / "_background_noise_").iterdir():
        path.unlink()
    assert convert("speechcommands", tmp_path / "src", tmp_path / "set") == 2
    assert "no _background_noise_/*.wav" in capsys.readouterr().err
    (tmp_path / "src" / "testing_list.txt").write_text("yes/00000000_nohash_0.wav\n")
    assert convert("speechcommands", tmp_path / "src", tmp_path / "set") == 2
    assert "in both validation_list.txt and testing_list.txt" in capsys.readouterr().err
    (tmp_path / "src" / "testing_list.txt").unlink()
    assert convert("speechcommands", tmp_path / "src", tmp_path / "set") == 2
    assert "testing_list.txt, which lists what is not for training" in capsys.readouterr().err


SPLIT = """1 id10001/1zcIwhmdeo4/00001.wav
1 id10001/1zcIwhmdeo4/00002.wav
2 id10001/7gWzIy6yIIk/00001.wav
3 id10270/-_5dfXv__Bk/00001.wav
1 id10270/-_5dfXv__Bk/00002.wav
3 id10309/zzzzzzzzzzz/00001.wav
1 id10001/1zcIwhmdeo4/00001.wav
"""


@pytest.mark.parametrize("archives", [("wav", "wav"), ("vox1_dev_wav/wav", "vox1_test_wav/wav"), ("", "")])
def test_voxceleb1(tmp_path: Path, archives: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    dev, test = (src / place for place in archives)
    for name in ("1zcIwhmdeo4/00001.wav", "1zcIwhmdeo4/00002.WAV", "7gWzIy6yIIk/00001.flac"):
        sound(dev / "id10001" / name)
    sound(test / "id10270" / "-_5dfXv__Bk" / "00001.wav")
    (test / "id10270" / "-_5dfXv__Bk" / "00002.wav").write_bytes(b"RIFF0000")
    (src / "iden_split.txt").write_text(SPLIT)
    (src / "vox1_meta.csv").write_text("VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n")
    assert convert("voxceleb1", src, dst) == 0
    assert {key: (clip.labels, clip.columns) for key, clip in clips(dst).items()} == {
        "id10001/1zcIwhmdeo4/00001": (("id10001",), {"split": 1, "speaker": 10001}),
        "id10001/1zcIwhmdeo4/00002": (("id10001",), {"split": 1, "speaker": 10001}),
        "id10001/7gWzIy6yIIk/00001": (("id10001",), {"split": 2, "speaker": 10001}),
        "id10270/-_5dfXv__Bk/00001": (("id10270",), {"split": 3, "speaker": 10270}),
    }
    assert missing(dst) == [("id10309/zzzzzzzzzzz/00001", "test")]
    assert passed_over(dst) == {"repeated clips": 1}
    assert Index.open(dst).labels == ("id10001", "id10270", "id10309")
    assert "1 unreadable" in capsys.readouterr().out


def test_what_is_wrong_with_voxceleb1_is_a_sentence(tmp_path: Path, capsys) -> None:
    src = tmp_path / "src"
    sound(src / "wav" / "id10001" / "1zcIwhmdeo4" / "00001.wav")
    for table, message in (
        ("4 id10001/1zcIwhmdeo4/00001.wav\n", "line 1 is '4 id10001"),
        ("1 ../../etc/passwd.wav\n", "line 1 is '1 ../"),
        ("1 id10001/1zcIwhmdeo4/00001.wav\n3 id10001/1zcIwhmdeo4/00001.wav\n", "is in both split 3 and split 1"),
        ("", "lists no clips"),
    ):
        (src / "iden_split.txt").write_text(table)
        assert convert("voxceleb1", src, tmp_path / "set") == 2
        assert message in capsys.readouterr().err
    (src / "iden_split.txt").unlink()
    assert convert("voxceleb1", src, tmp_path / "set") == 2
    assert "has no iden_split.txt" in capsys.readouterr().err


def test_librispeech_keeps_the_text_and_has_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "LibriSpeech", tmp_path / "set"
    for split, speaker, chapter in (("train-clean-100", 103, 1240), ("test-other", 1688, 142285)):
        place = src / split / str(speaker) / str(chapter)
        for utterance in range(3):
            sound(place / f"{speaker}-{chapter}-{utterance:04d}.flac", 0.05 * (utterance + 1))
        lines = [f"{speaker}-{chapter}-{u:04d} CHAPTER ONE MISSUS RACHEL'S SURPRISE {u}" for u in (0, 1, 3)]
        (place / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    (src / "SPEAKERS.TXT").write_text("; some pipe-separated information\n")
    assert convert("librispeech", src, dst) == 0
    assert convert("librispeech", tmp_path, tmp_path / "above") == 0  # the folder that it was unpacked into
    found = clips(dst)
    assert {key: clip.columns for key, clip in clips(tmp_path / "above").items()} == {
        key: clip.columns for key, clip in found.items()
    }
    assert {key: clip.columns for key, clip in found.items()} == {
        "103-1240-0000": {"split": 0, "speaker": 103, "chapter": 1240, "utterance": 0},
        "103-1240-0001": {"split": 0, "speaker": 103, "chapter": 1240, "utterance": 1},
        "1688-142285-0000": {"split": 6, "speaker": 1688, "chapter": 142285, "utterance": 0},
        "1688-142285-0001": {"split": 6, "speaker": 1688, "chapter": 142285, "utterance": 1},
    }
    assert found["103-1240-0001"].about["text"] == "CHAPTER ONE MISSUS RACHEL'S SURPRISE 1"
    assert all(clip.labels == () for clip in found.values())
    assert missing(dst) == [("1688-142285-0003", "test-other"), ("103-1240-0003", "train-clean-100")]
    assert passed_over(dst) == {"sound files without a line in a transcript": 2}
    index = Index.open(dst)
    assert (index.labels, len(index.where({"split": ["train"]}))) == ((), 2)
    assert len(index.where({"split": ["test-clean", "test-other"]})) == 2
    (src / "test-other" / "1688" / "142285" / "1688-142285.trans.txt").write_text("1688-9-0000 WORDS\n")
    assert convert("librispeech", src, tmp_path / "other") == 2
    assert "line 1 must begin with an utterance of 1688-142285" in capsys.readouterr().err
    assert convert("librispeech", tmp_path / "set", tmp_path / "other") == 2
    assert "is not LibriSpeech" in capsys.readouterr().err
