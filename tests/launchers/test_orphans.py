"""Ranks on this machine end with their launcher, however early it ends, and its end is no success."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gamut.processes import Process
from gamut.shards.__main__ import main as shards
from launchers.corpus import synthesise

ROOT = Path(__file__).resolve().parents[2]


def ranks_of(launcher: int) -> list[Process]:
    """The children that run a stage."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = (
        Process.of(int(pid)) for pid in children if b"pretrain/run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return [one for one in found if one is not None]


@pytest.mark.parametrize("after", [0.5, pytest.param(4.0, marks=pytest.mark.long)])
def test_a_launcher_killed_while_its_ranks_still_import(
    after: float, tmp_path: Path, gone: Callable[[Process, float], bool]
) -> None:
    synthesise(tmp_path / "corpus", 48, seconds=0.5)
    assert shards(["convert", "esc50", str(tmp_path / "corpus"), str(tmp_path / "shards")]) == 0
    words = ["pretrain", "demo", f"data={tmp_path}/shards", f"run.folder={tmp_path}/runs", "epochs=500"]
    words += ["front.mean=-6", "front.std=5"]
    line = [sys.executable, "launchers/slurm.py", *words, "--cpus-only", "2", "--local"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        launcher = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 90
        while len(ranks := ranks_of(launcher.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(ranks) == 2, (tmp_path / "log").read_text()
        time.sleep(after)
        launcher.kill()
        assert launcher.wait(30) == -signal.SIGKILL  # as whoever waits for the command sees it
        assert all(gone(rank, 15.0) for rank in ranks)
    finally:
        for rank in ranks:
            if rank.alive():
                os.kill(rank.pid, signal.SIGKILL)
    assert "its ancestor" in (tmp_path / "log").read_text()
