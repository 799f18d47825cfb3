"""A process in which nothing moves says what it was at and ends; one that beats, rests or is through does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(body: str) -> subprocess.CompletedProcess[str]:
    program = f"import ctypes, time\nfrom gamut.watchdog import WATCHDOG\n{body}\nprint('through')"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize(
    ("hang", "said"),
    [
        ("time.sleep(50)", "nothing has moved for 0.5 s in process"),
        ("input_is_never_here = __import__('threading').Event().wait(50)", "which is at: the second thing."),
        ("ctypes.PyDLL(None).sleep(50)", "Timeout (0:00:05"),  # it holds Python's lock
    ],
)
def test_what_hangs_is_ended_with_its_stacks(hang: str, said: str) -> None:
    done = run(f"with WATCHDOG.within(0.5, 'the first thing'):\n    WATCHDOG.beat('the second thing')\n    {hang}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert 'File "<string>", line 5 in <module>' in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "with WATCHDOG.within(1.0, 'a'):\n    for _ in range(30):\n        time.sleep(0.1)\n        WATCHDOG.beat()",
        "with WATCHDOG.within(0.5, 'a'):\n    with WATCHDOG.resting():\n        time.sleep(2)\n        WATCHDOG.beat()",
        "with WATCHDOG.within(0.5, 'a'):\n    with WATCHDOG.within(9.0, 'b'):\n        time.sleep(2)",
        "with WATCHDOG.within(0.5, 'a'):\n    pass\nWATCHDOG.beat('b')\ntime.sleep(2)",
    ],
)
def test_what_beats_rests_or_is_through_goes_on(body: str) -> None:
    done = run(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "")


def test_the_inner_limit_holds_and_a_rest_ends() -> None:
    done = run("with WATCHDOG.within(9, 'a'), WATCHDOG.within(0.5, 'b'):\n    with WATCHDOG.resting():\n        pass\n"
    "    time.sleep(50)")  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
