"""A job that was given GPUs does not go on without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gamut import accelerator
from gamut.accelerator import CHOICE
from gamut.commands import ROOT
from gamut.errors import RunError
from gamut.shards.__main__ import main as shards
from launchers.corpus import synthesise

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine whose GPUs torch cannot use")


@pytest.fixture(autouse=True)
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing speaks of a GPU."""
    monkeypatch.setattr(accelerator, "_DEVICES", tmp_path / "gpus")
    monkeypatch.setattr(accelerator, "_DRIVER", tmp_path / "version")
    for name in (CHOICE, "CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)


def test_without_gpus_the_cpu_is_used() -> None:
    assert accelerator.accelerator() == "cpu"


@pytest.mark.parametrize("name", ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"])
def test_gpus_of_slurm_that_do_not_work_are_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0,1")
    with pytest.raises(
        RunError, match=rf"SLURM has given this job GPUs \({name}=0,1\): no NVIDIA driver is loaded.*cpu"
    ):
        accelerator.accelerator()
    monkeypatch.setenv(CHOICE, "cpu")
    assert accelerator.accelerator() == "cpu"


def test_a_driver_that_is_too_old_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpus" / "0000:17:00.0").mkdir(parents=True)
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    (tmp_path / "version").write_text(line + "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
    assert accelerator.driver() == "535.183.01"
    with pytest.raises(RunError, match=r"has 1 NVIDIA GPU: its driver is 535.183.01, and CUDA 13.0 needs 580 or later"):
        accelerator.accelerator()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert accelerator.accelerator() == "cpu"


def test_a_driver_that_is_new_enough_has_no_problem(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n")
    assert accelerator.driver_problem() is None


def test_a_training_that_was_told_to_use_gpus_ends(tmp_path: Path) -> None:
    synthesise(tmp_path / "corpus", 10, seconds=1.0)
    assert shards(["convert", "esc50", str(tmp_path / "corpus"), str(tmp_path / "shards")]) == 0
    words = ["demo", f"data={tmp_path}/shards", f"run.folder={tmp_path}/runs", "front.mean=0", "front.std=1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain" / "run.py"), *words],
        env=os.environ | {CHOICE: "cuda"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot use a GPU here, although DS_ACCELERATOR is cuda" in done.stderr
    assert "Traceback" not in done.stderr
