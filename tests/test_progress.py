"""Progress: what a person reads."""

from __future__ import annotations

import io

import pytest

from gamut.progress import NullProgress, Progress, TrainingProgress, clock_time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_few_and_have_rate_and_time_left() -> None:
    stream, now = io.StringIO(), [100.0]
    with TrainingProgress("tiny", stream, clock=lambda: now[0]) as progress:
        for step in range(101):
            progress.update(step / 100, {"loss": 5.0 - step / 100, "clips_per_second": 31.4, "wait_share": 0.02})
            now[0] += 1.0
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21  # one every five of the hundred seconds, and the last step
    assert lines[4] == "tiny   20.0 %  loss 4.800  clips/s 31.4  waiting for data 2 %  left 1:20"
    assert lines[-1].startswith("tiny  100.0 %")


def test_a_command_tells_units_rate_and_time_left_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    with Progress("indexing [noise] [/b]", 2000, "shards", clock=lambda: now[0]) as progress:
        for _ in range(25):
            now[0] += 1.0
            progress.add(40)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "indexing [noise] [/b]  400 of 2,000 shards, 40/s, left 0:40",
        "indexing [noise] [/b]  800 of 2,000 shards, 40/s, left 0:30",
    ]


def test_time_left_is_at_this_attempts_own_rate() -> None:
    now = [0.0]
    progress = TrainingProgress("resumed", io.StringIO(), clock=lambda: now[0])
    progress.update(0.9, {})
    assert progress.left() is None
    now[0] = 50.0
    progress.update(0.95, {})
    assert progress.left() == pytest.approx(50.0)


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with TrainingProgress("tiny", stream) as progress:
        progress.update(0.5, {"loss": 1.25})
    assert "50.0 %" in stream.getvalue()
    assert "loss 1.250" in stream.getvalue()


def test_the_bar_shows_a_name_as_it_stands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with Progress("indexing [noise] [/b]", 1) as progress:
        progress.add(1)
    assert "indexing [noise] [/b]" in capsys.readouterr().err


def test_the_null_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with NullProgress() as progress:
        progress.update(0.5, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (4.6, "0:05"), (80, "1:20"), (3723, "1:02:03")])
def test_clock_time(seconds: float | None, text: str) -> None:
    assert clock_time(seconds) == text
