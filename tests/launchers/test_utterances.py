"""Utterances of strung digits: their lengths, their splits, and the same from the same seed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from launchers.utterances import main


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers, two words, 15 recordings; their samples are 1000 * speaker + index: a digit shows its origin."""
    folder = tmp_path_factory.mktemp("digits")
    for word in ("one", "two"):
        (folder / word).mkdir()
        for speaker, name in enumerate(("ann", "bob")):
            for index in range(15):
                wave = np.full(2000 + 100 * index, 1000 * speaker + index, np.int16)
                soundfile.write(folder / word / f"{name}_nohash_{index}.wav", wave, 8000, subtype="PCM_16")
    return folder


def read(folder: Path) -> list[tuple[dict[str, str], np.ndarray]]:
    with (folder / "utterances.csv").open(newline="") as file:
        return [(row, soundfile.read(folder / row["path"], dtype="int16")[0]) for row in csv.DictReader(file)]


def test_what_an_utterance_is_made_of(digits: Path, tmp_path: Path) -> None:
    assert main([str(digits), str(tmp_path / "a"), "--train", "8", "--test", "4"]) == 0
    found = read(tmp_path / "a")
    assert [row["split"] for row, _ in found] == ["train"] * 8 + ["test"] * 4
    assert [row["labels"] for row, _ in found] == ["ann", "bob"] * 6
    for row, wave in found:
        assert 4 * 8000 <= len(wave) <= 30 * 8000
        speaker, index = np.divmod(np.unique(wave), 1000)
        assert set(speaker) == {row["labels"] == "bob"}
        assert set(index) <= (set(range(10, 15)) if row["split"] == "train" else set(range(5)))
        assert len(index) > 1
    assert len({len(wave) for _, wave in found}) == 12


def test_strings_to_recognise_say_what_is_in_them(digits: Path, tmp_path: Path) -> None:
    assert main([str(digits), str(tmp_path / "a"), "--spoken", "5"]) == 0
    found = read(tmp_path / "a")
    assert [row["path"] for row, _ in found] == [f"{number:05d}.wav" for number in range(5)]
    for row, _ in found:
        assert len(row["text"].split()) == 8
        assert {*row["text"].split()} <= {"ONE", "TWO"}
    for _, wave in found[1::2]:  # bob's samples are never zero
        edges = np.flatnonzero(np.diff(np.concatenate([[0], wave != 0, [0]])))
        parts = [wave[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]
        assert len(parts) == 8
        assert all(np.diff(edges[1:-1])[::2] == 2000)
        origin = [np.divmod(int(part[0]), 1000) for part in parts]
        assert {speaker for speaker, _ in origin} == {1}
        assert {index for _, index in origin} <= set(range(5))
    lengths = {len(wave) for _, wave in found}
    assert len(lengths) > 1


def test_the_seed_decides(digits: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("again", "0"), ("b", "1")):
        assert main([str(digits), str(tmp_path / name), "--train", "3", "--test", "2", "--seed", seed]) == 0
    one, again, other = (read(tmp_path / name) for name in ("a", "again", "b"))
    assert all(np.array_equal(x, y) for (_, x), (_, y) in zip(one, again, strict=True))
    assert not any(np.array_equal(x, y) for (_, x), (_, y) in zip(one, other, strict=True))


def test_a_folder_without_digits_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "SPEAKER_nohash_INDEX.wav" in capsys.readouterr().err
