"""Scores from vectors in a folder, in a process of their own that the training does not feel."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gamut.errors import RunError, ShardError
from gamut.evaluate.probe import probe
from gamut.files import LAG
from gamut.probe.background import Background, place
from gamut.probe.fit import PICTURE, RESULT, embedding, gather, leave, main


class Notes:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[str, int]] = []

    def log(self, step: int, values: dict[str, float], late: bool = False) -> None:
        assert late
        self.lines.append((step, values))

    def picture(self, name: str, file: Path, step: int, late: bool = False) -> None:
        assert late
        assert file.read_bytes().startswith(b"\x89PNG")
        self.pictures.append((name, step))


def left(folder: Path, title: str = "", hole: int | None = None, **request: Any) -> dict[str, np.ndarray]:
    """What three ranks and the first one leave of 40 clips, with rows 10, 12, ...; returns all of it in order."""
    rng = np.random.default_rng(1)
    classes = np.arange(40) % 4
    vectors = {
        "cls": rng.normal(size=(40, 6)).astype(np.float32) + classes[:, None],
        "mean": rng.normal(size=(40, 6)).astype(np.float32),
    }
    row, target, fold = 10 + 2 * np.arange(40), np.eye(4, dtype=bool)[classes], np.arange(40) // 10
    folder.mkdir(parents=True)
    order = np.array([n for n in rng.permutation(40) if n != hole])
    for rank, own in enumerate((order[:25], order[25:], order[:0])):
        np.savez(folder / f"rank-{rank:05d}.npz", row=row[own], **{name: v[own] for name, v in vectors.items()})
    request = {"ranks": 3, "neighbours": 5, "scores": True, "title": title} | request
    leave(folder, row, target, fold, ("a", "b", "c", "d"), **request)
    vectors["both"] = np.concatenate([vectors["cls"], vectors["mean"]], 1)
    return vectors | {"target": target, "fold": fold}


def test_shares_come_together_without_the_clips_that_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = left(tmp_path / "a", hole=7)
    vectors, target, fold = gather(tmp_path / "a", 3)
    there = np.arange(40) != 7
    assert set(vectors) == {"cls", "mean", "both"}
    for name, value in vectors.items():
        np.testing.assert_array_equal(value, known[name][there])
    np.testing.assert_array_equal(target, known["target"][there])
    np.testing.assert_array_equal(fold, known["fold"][there])
    with pytest.raises(ShardError, match="None of the clips"):
        gather(tmp_path / "a", 0)
    monkeypatch.setenv(LAG, "0.3")
    with pytest.raises(RunError, match="share of rank 3"):
        gather(tmp_path / "a", 4)


def test_the_result_is_the_probes_and_the_picture_is_reproducible(tmp_path: Path) -> None:
    known = left(tmp_path / "a", "a title")
    main(tmp_path / "a")
    found = json.loads((tmp_path / "a" / RESULT).read_text())
    vectors = {name: known[name] for name in ("cls", "mean", "both")}
    expected = probe(vectors, known["target"], known["fold"], k=5)
    assert found == {f"probe/{name}": value for name, value in expected.items()} | {"probe/clips": 40.0}
    assert (tmp_path / "a" / PICTURE).read_bytes().startswith(b"\x89PNG")
    points = embedding(known["cls"])
    assert points.shape == (40, 2)
    assert points.tobytes() == embedding(known["cls"]).tobytes()
    assert embedding(known["cls"][:3]).shape == (3, 2)


def waited(background: Background, notes: Notes, lines: int) -> None:
    until = time.monotonic() + 120
    while len(notes.lines) < lines and time.monotonic() < until:
        time.sleep(0.05)
    background.drain(60)
    background.close()


def test_what_is_queued_is_scored_and_a_failure_is_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(place(tmp_path, 20), "a title", scores=False)  # a picture alone
    left(place(tmp_path, 30))
    next(place(tmp_path, 30).glob("rank-00000.npz")).write_bytes(b"no numbers")
    left(place(tmp_path, 90))  # of a future that a kill has undone
    place(tmp_path, 10).mkdir()  # not complete: a kill came between
    notes = Notes()
    background = Background(tmp_path, notes)
    background.take_over(40)
    assert sorted(path.name for path in (tmp_path / "probe-queue").iterdir()) == ["step-00000020", "step-00000030"]
    background.start()
    waited(background, notes, 1)
    assert notes.lines == [(30, {"probe/failures": 1.0})]
    assert notes.pictures == [("embedding", 20)]
    assert "probe of step 30 came to nothing" in capsys.readouterr().out
    assert "Traceback" in (tmp_path / "logs" / "probe.log").read_text()
    assert not list((tmp_path / "probe-queue").iterdir())


def test_ending_kills_what_is_scored_and_leaves_it_for_the_next_attempt(tmp_path: Path) -> None:
    left(place(tmp_path, 20))
    notes = Notes()
    background = Background(tmp_path, notes)
    background.start()
    background.add(20)
    until = time.monotonic() + 60
    while background._process is None and time.monotonic() < until:
        time.sleep(0.01)
    background.close()
    assert background._process is not None
    assert background._process.wait() != 0
    assert not background.is_alive()
    assert not notes.lines
    assert (place(tmp_path, 20) / "request.json").exists()
    assert not (place(tmp_path, 20) / RESULT).exists()
