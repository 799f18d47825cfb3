"""Under the real `deepspeed` launcher: who dies with whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import FOLDER, free_port

from gamut.train.restore import newest_verified

pytestmark = pytest.mark.long


def start(folder: Path) -> subprocess.Popen:
    launcher = Path(sys.executable).with_name("deepspeed")
    port = str(free_port())
    script = str(FOLDER / "launched.py")
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(launcher), "--num_gpus", "2", "--master_port", port, script, str(folder)]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def ranks_at(folder: Path, step: int, seconds: float = 90.0) -> list[int]:
    """The ranks' pids, once both have come to a step."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        told = [path.read_text().split() for path in (folder / "rank-0", folder / "rank-1") if path.exists()]
        if len(told) == 2 and all(len(words) == 2 and int(words[1]) >= step for words in told):
            return [int(words[0]) for words in told]
        time.sleep(0.1)
    pytest.fail(f"the ranks did not come to step {step}: {(folder / 'log').read_text()[-3000:]}")


def living(pids: list[int]) -> list[int]:
    def lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
        except OSError:
            return False

    return [pid for pid in pids if lives(pid)]


def end_within(pids: list[int], seconds: float) -> float:
    began = time.monotonic()
    while living(pids) and time.monotonic() < began + seconds:
        time.sleep(0.1)
    left = living(pids)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"still there after {seconds} s"
    return time.monotonic() - began


def test_nobody_outlives_the_launcher(tmp_path: Path) -> None:
    launcher = start(tmp_path)
    pids = ranks_at(tmp_path, 4)
    launcher.kill()
    launcher.wait()
    end_within(pids, 10.0)
    assert newest_verified(tmp_path / "run" / "checkpoints") is not None


def test_a_killed_rank_ends_the_job(tmp_path: Path) -> None:
    launcher = start(tmp_path)
    pids = ranks_at(tmp_path, 4)
    os.kill(pids[1], signal.SIGKILL)
    end_within(pids, 60.0)
    assert launcher.wait(60.0) != 0
    assert newest_verified(tmp_path / "run" / "checkpoints") is not None
