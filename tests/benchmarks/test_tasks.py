"""Shard sets as tasks of HEAR and X-ARES, and the score of a task beside that of `gamut probe`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

import gamut
from gamut.benchmarks.__main__ import main
from gamut.benchmarks.clips import read_labelled
from gamut.benchmarks.hear import load_model
from gamut.benchmarks.score import read_task, score
from gamut.errors import AudioError, ShardError
from gamut.probe.__main__ import main as probe
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from launchers.corpus import CLASSES, synthesise
from tests.benchmarks.test_hear import kept, said
from tests.close import assert_close
from tests.embed.conftest import asit
from tests.shards.layouts import convert, sound

__all__ = ["asit", "kept"]  # fixtures


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty clips of six classes in five folds, half a second each."""
    folder = tmp_path_factory.mktemp("sets")
    assert convert("esc50", synthesise(folder / "made", 10 * len(CLASSES), seconds=0.5), folder / "ten") == 0
    return folder / "ten"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two words of several speakers, of different lengths, split as Speech Commands are."""
    folder = tmp_path_factory.mktemp("words")
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for number in range(24):
        word, file = ("one", "two")[number % 2], f"v.{number // 2}_nohash_0.wav"
        sound(folder / "made" / word / file, 0.2 + 0.01 * number, seed=number)
        if number % 6 > 1:
            lists[("validation_list.txt", "testing_list.txt")[number % 6 > 3]].append(f"{word}/{file}")
    for name, lines in lists.items():
        (folder / "made" / name).write_text("\n".join(lines))
    assert convert("speechcommands", folder / "made", folder / "two") == 0
    return folder / "two"


def written(layout: str, given: Path, folder: Path, *more: str) -> Path:
    assert main([layout, str(given), str(folder), *more]) == 0
    return folder


def waveforms(index: Index) -> dict[str, np.ndarray]:
    clips = read_labelled(index.folder)
    return {clips.name(row): waveform for split in clips.splits for row, waveform in clips.waveforms(split)}


def test_folds_in_hears_layout(folds: Path, tmp_path: Path) -> None:
    task = written("hear", folds, tmp_path) / "ten"
    metadata = json.loads((task / "task_metadata.json").read_text())
    assert metadata["splits"] == [f"fold0{n}" for n in range(5)]
    assert metadata["split_mode"] == "presplit_kfold"
    assert (metadata["prediction_type"], metadata["evaluation"]) == ("multiclass", ["top1_acc"])
    assert metadata["sample_duration"] == 0.5
    index = Index.open(folds)
    table = list(csv.DictReader(io.StringIO((task / "labelvocabulary.csv").read_text())))
    assert [(int(row["idx"]), row["label"]) for row in table] == list(enumerate(index.labels))
    expected = waveforms(index)
    found: dict[str, list[str]] = {}
    for split in metadata["splits"]:
        files = json.loads((task / f"{split}.json").read_text())
        assert {path.name for path in (task / "16000" / split).iterdir()} == set(files)
        for file, labels in files.items():
            waveform, rate = soundfile.read(task / "16000" / split / file, dtype="int16")
            assert rate == 16000
            assert np.array_equal(waveform, expected[file.removesuffix(".wav")])
            row = int(file[:8])
            assert labels == [index.labels[label] for label in index.label_ids(row)]
            assert int(split[4:]) + 1 == index.columns["fold"][row]
        found |= files
    assert len(found) == len(index)


def test_splits_in_hears_layout(words: Path, tmp_path: Path) -> None:
    task = written("hear", words, tmp_path, "--name", "some-words") / "some-words"
    metadata = json.loads((task / "task_metadata.json").read_text())
    assert (metadata["splits"], metadata["split_mode"]) == (["train", "valid", "test"], "trainvaltest")
    assert metadata["sample_duration"] is None  # lengths differ: heareval takes one clip at a time then
    index = Index.open(words)
    for split, name in zip(metadata["splits"], ("train", "validation", "test")):
        files = json.loads((task / f"{split}.json").read_text())
        assert sorted(int(file[:8]) for file in files) == index.where({"split": [name]}).tolist()


def test_events_in_hears_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str], folds: Path) -> None:
    """Milliseconds, as heareval reads them; a clip without times is left out, and counted."""
    clips, events = ["path,labels,fold"], ["filename,onset,offset,event_label"]
    for number in range(9):
        sound(tmp_path / f"{number}.wav", 1.0, seed=number)
        clips.append(f"{number}.wav,dog;rain,{number % 3}")
        if number != 4:
            events += [f"{number}.wav,0.25,0.5,dog", f"{number}.wav,0.1,0.9,rain"]
    (tmp_path / "clips.csv").write_text("\n".join(clips))
    (tmp_path / "events.csv").write_text("\n".join(events))
    words = ["csv", str(tmp_path / "clips.csv"), str(tmp_path / "set"), "--events", str(tmp_path / "events.csv")]
    assert shards(["convert", *words, "--workers", "1"]) == 0
    task = written("hear", tmp_path / "set", tmp_path / "tasks", "--events") / "set"
    assert "1 without times of all labels left out" in capsys.readouterr().err
    metadata = json.loads((task / "task_metadata.json").read_text())
    assert (metadata["embedding_type"], metadata["prediction_type"]) == ("event", "multilabel")
    found = [said for split in metadata["splits"] for said in json.loads((task / f"{split}.json").read_text()).values()]
    rain, dog = {"label": "rain", "start": 100.0, "end": 900.0}, {"label": "dog", "start": 250.0, "end": 500.0}
    assert found == [[rain, dog]] * 8
    with pytest.raises(ShardError, match="a task of events: heareval scores it"):
        read_task(task)
    assert main(["hear", str(folds), str(tmp_path / "none"), "--events"]) == 2
    assert "has events, labels with onset and offset" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folds", "words"])
def test_x_ares_layout(kind: str, folds: Path, words: Path, tmp_path: Path) -> None:
    """Tars by the names that its task asks for, read by the library that it reads with."""
    given = {"folds": folds, "words": words}[kind]
    written("xares", given, tmp_path, "--name", "a task")
    index, expected = Index.open(given), waveforms(Index.open(given))
    names = [f"wds-audio-fold-{n}" for n in range(1, 6)] if kind == "folds" else ["train", "valid", "test"]
    tars = sorted((tmp_path / "a_task").glob("*.tar"))
    assert sorted(tar.name for tar in tars) == sorted(f"{name}-00000.tar" for name in names)
    assert (tmp_path / "a_task" / ".audio_tar_ready").exists()
    seen = 0
    for sample in webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False):
        waveform, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        about, row = json.loads(sample["json"]), int(sample["__key__"][:8])
        assert rate == 16000
        assert np.array_equal(waveform, expected[sample["__key__"]])
        assert about["labels"] == [about["label"]] == index.label_ids(row).tolist()
        assert not sample["__key__"][-1].isdigit()  # X-ARES puts a number behind it
        seen += 1
    assert seen == len(index)
    compile((tmp_path / "a_task_task.py").read_text(), "a_task_task.py", "exec")


def test_a_task_scores_as_gamut_probe_does(
    folds: Path, asit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same clips and folds, vectors by HEAR's interface here and by the backbone's batches there."""
    assert probe([str(asit), f"probe.data={folds}", "loader.workers=0", "--out", str(tmp_path / "probe")]) == 0
    expected = json.loads((tmp_path / "probe" / "scores.json").read_text())[-1]["scores"]
    task = written("hear", folds, tmp_path) / "ten"
    capsys.readouterr()
    assert main(["score", str(task), str(asit), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == expected["probe/clips"]
    for name in ("knn", "linear"):
        assert abs(found[name] - expected[f"probe/{name}/cls"]) * found["clips"] <= 1.001  # a clip at most
    assert main(["score", str(task), str(asit)]) == 0
    assert f"k-NN {found['knn']:.1%}, linear {found['linear']:.1%}" in capsys.readouterr().out


def test_without_folds_the_test_clips_are_scored(words: Path, asit: Path, tmp_path: Path) -> None:
    task = read_task(written("hear", words, tmp_path) / "two")
    found = score(task, load_model(str(asit)))
    assert found["clips"] == len(task.splits["test"])


def test_what_cannot_be_a_task_is_said(words: Path, folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for line, told in (
        (["hear", str(words), str(tmp_path), "--column", "fold"], "have no column fold; its columns are split, take"),
        (["hear", str(words), str(tmp_path), "--column", "take"], "has 1 folds: three are needed"),
        (["xares", str(tmp_path / "nowhere"), str(tmp_path)], "nowhere"),
        (["score", str(tmp_path), str(tmp_path)], "task_metadata.json, of a task of HEAR, cannot be read"),
    ):
        assert main(line) == 2
        assert told in capsys.readouterr().err
    task = written("hear", folds, tmp_path) / "ten"
    assert main(["score", str(tmp_path), str(tmp_path)]) == 2
    assert f"is a folder of tasks: name one of them, such as {task}." in capsys.readouterr().err
    assert main(["hear", str(folds), str(tmp_path)]) == 2
    assert "is there already, and not empty" in capsys.readouterr().err


def test_what_is_wrong_in_a_task_is_named(folds: Path, asit: Path, tmp_path: Path) -> None:
    folder = written("hear", folds, tmp_path) / "ten"
    model, task = load_model(str(asit)), read_task(folder)
    file = sorted((folder / "16000" / "fold00").iterdir())[0]
    soundfile.write(file, np.zeros(22050), 44100)
    with pytest.raises(AudioError, match=rf"{file.name} is of 44100 Hz"):
        score(task, model)
    file.unlink()
    with pytest.raises(AudioError, match=rf"{file.name} cannot be read"):
        score(task, model)
    soundfile.write(file, np.full(1000, np.nan), 16000, "FLOAT")
    with pytest.raises(AudioError, match=r"Among .*samples that are NaN"):
        score(task, model)
    about = folder / "fold00.json"
    about.write_text(about.read_text().replace(CLASSES[0], "unheard of"))
    with pytest.raises(ShardError, match=r"is labelled unheard of, not in labelvocabulary\.csv"):
        read_task(folder)


@pytest.mark.long
def test_x_ares_own_program_scores_its_layout(folds: Path, asit: Path, kept: Path, tmp_path: Path) -> None:
    """In five folds: what it keeps of every clip is the model's frames, and both its classifiers are scored.

    The scores themselves say little of a model that was not trained.
    """
    written("xares", folds, tmp_path)
    words = ("-m", "xares.run", "gamut/benchmarks/xares.py", "ten_task.py", "--max-jobs", "0")
    told = said(kept, *words, cwd=tmp_path, GAMUT_MODEL=str(asit))
    (row,) = [line.split() for line in told.splitlines() if line.split()[:1] == ["ten"]]
    assert all(0 < float(share) <= 1 for share in row[1:3])
    expected, model = waveforms(Index.open(folds)), gamut.load(asit)
    tars = [str(tar) for tar in (tmp_path / "ten" / "embeddings").glob("*/*.tar")]
    seen = set()
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        name = sample["__key__"].rstrip("0123456789")
        (frames,) = model.embed(expected[name], 16000, level="frame")
        assert_close(np.load(io.BytesIO(sample["npy"])), frames.values, 1e-5)
        seen.add(name)
    assert seen == set(expected)
