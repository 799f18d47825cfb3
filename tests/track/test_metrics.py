"""metrics.jsonl: nothing written is lost, nothing undone is shown, and the last attempt of a step wins."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut import files
from gamut.errors import RunError
from gamut.recipe import schema
from gamut.track.metrics import History, MetricsFile, read_lines
from gamut.track.run import RunFolder
from gamut.track.tracker import Tracker
from tests.volatile import Volatile


def attempt(path: Path, number: int, steps: list[int], value: float = 0.0) -> None:
    file = MetricsFile(path, number)
    for step in steps:
        file.append({"loss": number + value}, step=step)
    file.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 3, clock=lambda: 12.5)
    file.append({"loss": 1 / 3, "bad": math.nan, "over": math.inf}, step=7)
    assert len(list(read_lines(path))) == 1  # at once, not when it is closed
    file.close()
    line = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert line == {"attempt": 3, "step": 7, "time": 12.5, "loss": 1 / 3, "bad": "nan", "over": "inf"}
    history = History.read(path)
    assert history.series("loss") == ([7], [1 / 3])
    assert math.isnan(history.series("bad")[1][0])
    assert history.series("over")[1] == [math.inf]
    assert history.series("none") == ([], [])


@pytest.mark.parametrize("key", ["step", "time", "attempt", "event", "late"])
def test_keys_of_the_line_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        MetricsFile(tmp_path / "m", 1).append({key: 1.0}, step=1)


def test_a_torn_last_line_is_no_line_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    attempt(path, 1, [1, 2, 3])
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        assert History.read(path).series("loss")[0] == [1, 2]
        attempt(path, 2, [3])
        assert History.read(path).series("loss") == ([1, 2, 3], [1.0, 1.0, 2.0])


def test_a_line_that_the_disk_takes_half_of_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    file, room, write = MetricsFile(path, 1), 100, os.write

    def full(descriptor: int, data: bytes) -> int:
        left = room - path.stat().st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:left])

    file.append({"loss": 1.0}, step=1)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        RunError,
        match=r"metrics\.jsonl cannot be written: No space left on device \([\d,]+ bytes wanted.*\)\. Free some space",
    ):
        file.append({"loss": 2.0}, step=2)
    monkeypatch.undo()
    file.append({"status": "failed"}, event="end")  # what a run that stops still says
    file.close()
    attempt(path, 2, [2])
    assert History.read(path).series("loss") == ([1, 2], [1.0, 2.0])


def test_a_disk_that_fails_to_sync_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file = MetricsFile(tmp_path / "metrics.jsonl", 1)
    monkeypatch.setattr(os, "fsync", fails)
    for act in (file.sync, file.close):
        with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: Input/output error \("):
            act()
    file.close()  # it is closed


def test_a_torn_only_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 200_000)
    attempt(path, 1, [1])
    assert History.read(path).series("loss") == ([1], [1.0])


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    attempt(path, 1, [1, 2])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"garbage\n" + second)
    with pytest.raises(RunError, match=f"byte {len(first)}"):
        History.read(path)


def test_a_later_attempt_undoes_what_it_goes_back_behind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    attempt(path, 1, [1, 2, 3, 4, 5, 6])
    attempt(path, 2, [4])  # went on after 3 and has not come to 5 yet
    assert History.read(path).series("loss") == ([1, 2, 3, 4], [1.0, 1.0, 1.0, 2.0])


def test_a_step_may_be_logged_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 1)
    file.append({"loss": 1.0}, step=4)
    file.append({"accuracy": 0.5}, step=4)
    file.close()
    file = MetricsFile(path, 2)
    file.append({"accuracy": 0.6}, step=4)  # evaluated again, not trained again
    file.close()
    history = History.read(path)
    assert history.series("loss") == ([4], [1.0])
    assert history.series("accuracy") == ([4], [0.6])


def test_what_comes_late_undoes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    attempt(path, 1, [1, 2, 3, 4])
    file = MetricsFile(path, 2)
    file.append({"probe": 0.5}, step=2, late=True)  # of attempt 1, scored when attempt 2 had not taken a step yet
    file.append({"name": "embedding", "file": "figures/e.png"}, step=2, event="figure", late=True)
    assert History.read(path).series("loss")[0] == [1, 2, 3, 4]
    file.append({"loss": 2.0}, step=4)
    file.append({"probe": 0.7}, step=3, late=True)
    file.close()
    history = History.read(path)
    assert history.series("loss") == ([1, 2, 3, 4], [1.0, 1.0, 1.0, 2.0])
    assert history.series("probe") == ([2, 3], [0.5, 0.7])
    assert history.figures == {"embedding": {2: "figures/e.png"}}
    assert "late" not in history.points


def test_events(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 1, clock=lambda: 5.0)
    file.append({"host": "a"}, event="start")
    file.append({"loss": 1.0}, step=1)
    file.append({"name": "mask", "file": "figures/mask.png"}, step=1, event="figure")
    assert History.read(path).settled == -1
    file.append({"uri": "c", "sha256": "d"}, step=1, event="checkpoint")
    file.append({"loss": 1.0}, step=2)
    history = History.read(path)
    assert history.settled == 1
    assert history.figures == {"mask": {1: "figures/mask.png"}}
    assert history.attempts[1].facts == {"host": "a"}
    assert history.attempts[1].status is None
    file.append({"status": "finished"}, event="end")
    file.close()
    history.follow(path)
    assert history.settled == math.inf
    assert history.attempts[1].status == "finished"
    assert "uri" not in history.points


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 15)), min_size=1, max_size=6), st.data())
def test_history_is_that_of_a_run_that_was_never_stopped(plan: list[tuple[int, int]], data: st.DataObject) -> None:
    """Attempts that each go on from somewhere in what is there: the result is gapless, newest attempt everywhere."""
    history, owner = History(), {}
    reached = 0
    for number, (back, steps) in enumerate(plan, start=1):
        start = max(0, reached - back)
        for step in range(start + 1, start + steps + 1):
            history.take({"attempt": number, "time": 0.0, "step": step, "loss": float(number)})
        owner = {step: who for step, who in owner.items() if step <= start}
        owner |= dict.fromkeys(range(start + 1, start + steps + 1), number)
        reached = start + steps
    assert history.series("loss") == (list(range(1, reached + 1)), [float(owner[s]) for s in range(1, reached + 1)])


def test_what_a_checkpoint_counts_on_survives_the_power(tmp_path: Path) -> None:
    folder = RunFolder.open(schema.Recipe(run=schema.Run(folder=str(tmp_path), name="run")))
    folder.metrics.touch()
    disk = Volatile()
    tracker = Tracker(folder, schema.Recipe(track=schema.Track(mlflow="off")))
    tracker.log(1, {"loss": 1.0})
    tracker.checkpoint(1)
    files.sync(folder.path)  # the names in it
    disk.cut(folder.path)
    assert History.read(folder.metrics).series("loss") == ([1], [1.0])
