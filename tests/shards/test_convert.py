"""From files of any kind to shards: what comes out is what soundfile and soxr give, and webdataset reads it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import webdataset
import xxhash

from gamut.audio.decode import decode_flac
from gamut.errors import ShardError
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.convert import SOURCES

from .conftest import encode, write_sounds


def convert(source: str, src: Path, dst: Path, *more: str) -> int:
    return main(["convert", source, str(src), str(dst), "--workers", "1", *more])


def payload(index: Index, row: int) -> bytes:
    content = index.shard_path(int(index.shard[row])).read_bytes()
    return content[int(index.offset[row]) : int(index.offset[row]) + int(index.size[row])]


def samples(index: Index, row: int) -> np.ndarray:
    return decode_flac(payload(index, row), int(index.samples[row]))


def expected(path: Path) -> np.ndarray:
    """What a clip must become, by soundfile and soxr alone."""
    with soundfile.SoundFile(path) as file:
        audio = file.read(dtype="float32", always_2d=True).mean(axis=1, dtype=np.float32)
        if file.samplerate != 16000:
            audio = soxr.resample(audio, file.samplerate, 16000)
    return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)


def test_esc10_converts_with_its_folds_targets_and_classes(esc10_part: Path, tmp_path: Path) -> None:
    assert convert("esc50", esc10_part, tmp_path / "set", "--clips-per-shard", "8") == 0
    index = Index.open(tmp_path / "set")
    assert (len(index), len(index.shards), index.name) == (20, 3, "esc50")
    assert index.labels == (
        "dog", "rooster", "rain", "sea_waves", "crackling_fire", "crying_baby", "sneezing", "clock_tick",
        "helicopter", "chainsaw",
    )  # fmt: skip
    targets = (0, 1, 10, 11, 12, 20, 21, 38, 40, 41)
    for row in range(20):
        fold, _, _, target = index.key(row).split("-")  # the official names say it themselves
        assert (int(fold), int(target)) == (index.columns["fold"][row], index.columns["target"][row])
        assert targets[index.label_ids(row)[0]] == int(target)
        np.testing.assert_array_equal(samples(index, row), expected(esc10_part / "audio" / f"{index.key(row)}.ogg"))
    assert sorted({index.key(row) for row in range(20)}) == sorted(p.stem for p in (esc10_part / "audio").iterdir())


def test_webdataset_reads_the_same_audio_and_labels(esc10_part: Path, tmp_path: Path) -> None:
    assert convert("esc50", esc10_part, tmp_path / "set", "--clips-per-shard", "8") == 0
    index = Index.open(tmp_path / "set")
    rows = {index.key(row): row for row in range(len(index))}
    urls = [str(index.shard_path(shard)) for shard in range(len(index.shards))]
    seen = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        row = rows[sample["__key__"]]
        seen.append(row)
        audio, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        assert rate == 16000
        np.testing.assert_array_equal(audio, samples(index, row))
        about = json.loads(sample["json"])
        assert about["labels"] == [index.labels[label] for label in index.label_ids(row)]
        assert (about["samples"], about["duration"]) == (len(audio), len(audio) / 16000)
        assert about["provenance"]["rate"] == 44100
        assert about["provenance"]["channels"] == 1
    assert seen == list(range(20))  # the index has the order of the tars


def test_either_suffix_of_esc50_is_accepted(esc10_part: Path, tmp_path: Path) -> None:
    (tmp_path / "src" / "audio").mkdir(parents=True)
    (tmp_path / "src" / "meta").symlink_to(esc10_part / "meta")
    for path in sorted((esc10_part / "audio").iterdir()):
        audio, rate = soundfile.read(path)
        soundfile.write(tmp_path / "src" / "audio" / f"{path.stem}.wav", audio[: rate // 10], rate)
    assert convert("esc50", tmp_path / "src", tmp_path / "set") == 0
    assert len(Index.open(tmp_path / "set")) == 20


@pytest.mark.long
def test_the_whole_esc10_converts(shared_data: Path, tmp_path: Path) -> None:
    assert main(["convert", "esc50", str(shared_data / "esc10"), str(tmp_path / "set")]) == 0
    index = Index.open(tmp_path / "set")
    assert (len(index), len(index.labels)) == (400, 10)
    assert np.bincount(index.label).tolist() == [40] * 10
    assert np.bincount(index.columns["fold"]).tolist() == [0, 80, 80, 80, 80, 80]
    assert main(["verify", str(tmp_path / "set")]) == 0


def test_the_index_says_what_is_in_the_tars(pristine: Path, sounds: Path, members) -> None:
    index = Index.open(pristine)
    assert [shard["clips"] for shard in index.shards] == [7, 7, 7, 3]
    assert index.labels == ("bell", "dog", "rain")
    for shard, about in enumerate(index.shards):
        path = index.shard_path(shard)
        assert path.stat().st_size == about["size"]
        assert xxhash.xxh3_64_hexdigest(path.read_bytes()) == about["checksum"]
        rows = np.flatnonzero(index.shard == shard)
        content = members(path)
        assert list(content) == [f"{index.key(row)}.{ending}" for row in rows for ending in ("flac", "json")]
        for row in rows:
            key = index.key(row)
            assert payload(index, row) == content[f"{key}.flac"]
            assert xxhash.xxh3_64_intdigest(payload(index, row)) == index.checksum[row]
            assert index.clip_id[row] == xxhash.xxh3_64_intdigest(f"sounds/{path.stem}/{key}".encode())
            assert index.labels[index.label_ids(row)[0]] == key.split("/")[0]
            np.testing.assert_array_equal(samples(index, row), expected(sounds / f"{key}.wav"))
            about_clip = json.loads(content[f"{key}.json"])
            assert about_clip["provenance"]["file"] == f"{key}.wav"
            assert about_clip["samples"] == index.samples[row]


def test_shards_mix_the_classes(pristine: Path) -> None:
    index = Index.open(pristine)
    for shard in range(3):
        assert len(np.unique(index.label[index.shard == shard])) > 1


def test_every_format_length_and_number_of_channels_becomes_16_khz_mono(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "src" / "noise"
    folder.mkdir(parents=True)
    made = {
        "eight": ("WAV", "FLOAT", 16000, rng.normal(scale=0.1, size=(3000, 8))),
        "fast": ("WAV", "PCM_24", 192000, rng.normal(scale=0.1, size=19200)),
        "short": ("WAV", "PCM_16", 44100, rng.normal(scale=0.1, size=441)),  # 0.01 s
        "one": ("WAV", "PCM_16", 16000, np.array([0.25])),
        "silence": ("WAV", "PCM_16", 44100, np.zeros(44100)),
        "loud": ("WAV", "FLOAT", 16000, np.where(np.arange(1000) < 40, 1.5, 0.5)),
        "vorbis": ("OGG", "VORBIS", 32000, rng.normal(scale=0.1, size=(32000, 2))),
        "opus": ("OGG", "OPUS", 48000, rng.normal(scale=0.1, size=48000)),
        "mp3": ("MP3", None, 22050, rng.normal(scale=0.1, size=22050)),
        "aiff": ("AIFF", None, 8000, rng.normal(scale=0.1, size=8000)),
        "flac": ("FLAC", None, 16000, rng.normal(scale=0.1, size=16000)),
        "caf": ("CAF", "ALAC_16", 44100, rng.normal(scale=0.1, size=44100)),
    }
    for name, (container, subtype, rate, audio) in made.items():
        (folder / f"{name}.{container.lower()}").write_bytes(encode(audio, rate, container, subtype))
    assert convert("folder", tmp_path / "src", tmp_path / "set") == 0
    index = Index.open(tmp_path / "set")
    rows = {index.key(row).removeprefix("noise/"): row for row in range(len(index))}
    assert rows.keys() == made.keys()
    for name, (container, _, rate, audio) in made.items():
        assert index.samples[rows[name]] == pytest.approx(len(audio) * 16000 / rate, abs=1)
        np.testing.assert_array_equal(samples(index, rows[name]), expected(folder / f"{name}.{container.lower()}"))
    assert not samples(index, rows["silence"]).any()
    assert json.loads((tmp_path / "set" / "index" / "quarantine.json").read_bytes())["saturated"] == {"noise/loud": 40}


def broken_files(folder: Path) -> dict[str, str]:
    """Unusable files of every kind in a class of their own; path -> the reason that each must be given."""
    audio = np.random.default_rng(0).normal(scale=0.1, size=20_000)
    nan = audio.copy()
    nan[5] = np.nan
    files = {
        "cut.flac": (encode(audio, 16000, "FLAC")[:-500], "corrupt"),
        "cut.wav": (encode(audio, 16000)[:-500], "truncated"),
        "cut.ogg": (encode(audio, 16000, "OGG")[:-500], "truncated"),
        "cut.mp3": (encode(audio, 16000, "MP3")[:-500], "truncated"),
        "rotten.flac": (encode(audio, 16000, "FLAC").replace(b"\x00", b"\x01"), "unreadable"),
        "no_bytes.wav": (b"", "empty"),
        "no_samples.wav": (encode(audio[:0], 16000), "empty"),
        "nan.wav": (encode(nan, 16000, "WAV", "FLOAT"), "not_finite"),
        "text.wav": (b"this is no sound", "unreadable"),
    }
    (folder / "broken").mkdir(parents=True)
    for name, (content, _) in files.items():
        (folder / "broken" / name).write_bytes(content)
    return {str(folder / "broken" / name): reason for name, (_, reason) in files.items()}


def test_unusable_files_are_named_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sounds(tmp_path / "src", clips=6)
    reasons = broken_files(tmp_path / "src")
    assert convert("folder", tmp_path / "src", tmp_path / "set", "--clips-per-shard", "4") == 0
    quarantine = json.loads((tmp_path / "set" / "index" / "quarantine.json").read_bytes())
    assert {one["file"]: one["reason"] for one in quarantine["files"]} == reasons
    assert sum(quarantine["counts"].values()) == len(reasons)
    assert quarantine["counts"]["truncated"] == 3
    assert all(Path(one["file"]).name in one["message"] for one in quarantine["files"])
    index = Index.open(tmp_path / "set")
    assert len(index) == 6
    assert index.labels == ("bell", "broken", "dog", "rain")  # known before any audio is read
    out = capsys.readouterr().out
    assert "left out 9 unusable files" in out
    assert "3 truncated" in out
    assert main(["verify", str(tmp_path / "set")]) == 0


def test_stop_stops_at_the_first_unusable_file_even_one_that_was_skipped_before(tmp_path: Path, capsys) -> None:
    write_sounds(tmp_path / "src", clips=6)
    (tmp_path / "src" / "dog" / "bad.wav").write_bytes(b"")
    src, dst = tmp_path / "src", tmp_path / "set"
    for _ in range(2):
        assert convert("folder", src, dst, "--on-error", "stop") == 2
        assert "bad.wav" in capsys.readouterr().err
        assert not list(dst.glob("*.partial"))
    assert convert("folder", src, dst) == 0
    assert len(Index.open(dst)) == 6
    assert convert("folder", src, dst, "--on-error", "stop") == 2
    assert "bad.wav" in capsys.readouterr().err


def test_a_set_of_which_nothing_is_usable_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken_files(tmp_path / "src")
    assert convert("folder", tmp_path / "src", tmp_path / "set") == 2
    assert "None of the 9 files can be used" in capsys.readouterr().err
    assert main(["stats", str(tmp_path / "set")]) == 2


def test_a_file_that_the_table_names_but_is_not_there_is_counted(esc10_part: Path, tmp_path: Path) -> None:
    src = Path(shutil.copytree(esc10_part, tmp_path / "src"))
    gone = sorted((src / "audio").iterdir())[3]
    gone.unlink()
    (src / "audio" / "stray.wav").write_bytes(b"")
    assert convert("esc50", src, tmp_path / "set") == 0
    quarantine = json.loads((tmp_path / "set" / "index" / "quarantine.json").read_bytes())
    assert [(one["file"], one["reason"]) for one in quarantine["files"]] == [(str(gone), "missing")]
    assert quarantine["ignored"] == {"not in meta/esc50.csv": 1}
    assert len(Index.open(tmp_path / "set")) == 19


def test_a_failed_read_stops_and_quarantines_nothing(sounds: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "004.wav":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert convert("folder", sounds, tmp_path / "set") == 2
    err = capsys.readouterr().err
    assert "004.wav cannot be read: Input/output error" in err
    monkeypatch.undo()
    assert convert("folder", sounds, tmp_path / "set") == 0
    assert len(Index.open(tmp_path / "set")) == 24


def test_linked_folders_are_read_once_and_the_rest_of_them_counted(sounds: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_sounds(src, clips=2, classes=("bell", "dog"))
    (src / "rain").symlink_to(sounds / "rain")
    (src / "dog" / "more").symlink_to(sounds / "dog")
    (src / "dog" / "round").symlink_to(src)
    (src / "wet").symlink_to(sounds / "rain")
    listing = SOURCES["folder"]().list(src)
    assert listing.labels == ("bell", "dog", "rain")
    assert len(list(listing.records)) == 2 + 8 + 8
    assert listing.passed_over() == {"links to a folder that was read already": 2}


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sounds(tmp_path, clips=3)
    scandir = os.scandir

    def refusing(path: str):
        if os.path.basename(path) == "dog":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ShardError, match=r"dog cannot be listed: Permission denied\."):
        SOURCES["folder"]().list(tmp_path)


def test_unusable_files_whose_names_are_not_utf8_are_told(tmp_path: Path, capsys) -> None:
    write_sounds(tmp_path / "src", clips=2)
    for name in (b"bad\xff.wav", b"odd.\xfe"):
        (tmp_path / "src" / "dog" / os.fsdecode(name)).write_bytes(b"no sound")
    assert convert("folder", tmp_path / "src", tmp_path / "set") == 0
    out = capsys.readouterr().out
    assert r"/dog/bad\udcff.wav" in out
    assert r"passed over: 1 .\udcfe files" in out


def test_awkward_names_make_keys_that_webdataset_reads(tmp_path: Path) -> None:
    wav = encode(np.full(800, 0.1), 16000)
    names = [
        "a.b.wav",
        "a.b.WAV",
        "a b.wav",
        "__x__.wav",
        "тест.wav",
        "deep/er/x.wav",
        f"{'long' * 50}.wav",
        "x.flac.wav",
    ]
    for name in names:
        path = tmp_path / "src" / "hünd.1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav)
    for name in ("notes.txt", ".hidden.wav", "no_ending"):
        (tmp_path / "src" / "hünd.1" / name).write_bytes(b"")
    (tmp_path / "src" / "loose.wav").write_bytes(wav)
    assert convert("folder", tmp_path / "src", tmp_path / "set") == 0
    index = Index.open(tmp_path / "set")
    assert index.labels == ("hünd.1",)
    keys = [index.key(row) for row in range(len(index))]
    assert len(set(keys)) == len(names)
    assert {"hünd_1/deep/er/x", "hünd_1/тест", "hünd_1/-x__"} <= set(keys)
    dataset = webdataset.WebDataset([str(index.shard_path(0))], shardshuffle=False)
    assert [sample["__key__"] for sample in dataset] == keys
    assert json.loads((tmp_path / "set" / "index" / "quarantine.json").read_bytes())["ignored"] == {
        ".txt files": 1, "hidden": 1, "files without an ending": 1, "outside a class folder": 1,
    }  # fmt: skip
