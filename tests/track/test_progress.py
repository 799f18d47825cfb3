"""Progress: what a person reads."""

from __future__ import annotations

import io

import pytest

from gamut.track.progress import NullProgress, Progress, clock_time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_few_and_have_rate_and_time_left() -> None:
    stream, now = io.StringIO(), [100.0]
    with Progress("tiny", stream, clock=lambda: now[0]) as progress:
        for step in range(101):
            progress.update(step / 100, {"loss": 5.0 - step / 100, "clips_per_second": 31.4, "wait_share": 0.02})
            now[0] += 1.0
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21  # one every five of the hundred seconds, and the last step
    assert lines[4] == "tiny   20.0 %  loss 4.800  clips/s 31.4  waiting for data 2 %  left 1:20"
    assert lines[-1].startswith("tiny  100.0 %")


def test_time_left_is_at_this_attempts_own_rate() -> None:
    now = [0.0]
    progress = Progress("resumed", io.StringIO(), clock=lambda: now[0])
    progress.update(0.9, {})
    assert progress.left() is None
    now[0] = 50.0
    progress.update(0.95, {})
    assert progress.left() == pytest.approx(50.0)


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with Progress("tiny", stream) as progress:
        progress.update(0.5, {"loss": 1.25})
    assert "50.0 %" in stream.getvalue()
    assert "loss 1.250" in stream.getvalue()


def test_the_null_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with NullProgress() as progress:
        progress.update(0.5, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (4.6, "0:05"), (80, "1:20"), (3723, "1:02:03")])
def test_clock_time(seconds: float | None, text: str) -> None:
    assert clock_time(seconds) == text
