"""Which device this process works on, and whether the driver can serve it.

A job that was given GPUs must not creep along on the CPU because a driver failed: it ends, and says so.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from gamut.errors import RunError

CHOICE = "DS_ACCELERATOR"  # DeepSpeed's name for it: cpu or cuda
# CUDA's major version -> the oldest driver that runs it. docs.nvidia.com/deploy/cuda-compatibility, table 1
DRIVERS = {12: 525, 13: 580}
_DEVICES, _DRIVER = Path("/proc/driver/nvidia/gpus"), Path("/proc/driver/nvidia/version")


def accelerator() -> str:
    """`cuda` or `cpu`: what DS_ACCELERATOR says, else `cuda` where this process has NVIDIA GPUs.

    Raises RunError where it has GPUs, or was told to use them, and torch cannot.
    """
    import torch  # takes seconds

    wanted = os.environ.get(CHOICE)
    if wanted == "cpu":
        return "cpu"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return "cuda"
    reason = given(os.environ)
    if wanted == "cuda":
        reason = reason or f"{CHOICE} is cuda"
    if reason is None:
        return "cpu"
    details = [str(warning.message).split(". ")[0] for warning in said] or ["torch does not say why"]
    raise RunError(
        f"torch {torch.__version__} cannot use a GPU here, although {reason}: {driver_problem() or details[0]}. "
        f"`gamut doctor` says more. To use the CPU anyway, set {CHOICE}=cpu."
    )


def given(environment: Mapping[str, str]) -> str | None:
    """Why one would expect a GPU here: words for a sentence, or None where nothing speaks of one."""
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return None
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environment.get(name):
            return f"SLURM has given this job GPUs ({name}={environment[name]})"
    found = len([*_DEVICES.glob("*")])
    return f"this machine has {found} NVIDIA GPU{'s' * (found > 1)}" if found else None


def driver() -> str | None:
    """The version of the NVIDIA kernel driver, such as `580.65.06`; None where none is loaded."""
    try:
        match = re.search(r"(\d{3,}\.\d+(?:\.\d+)?)", _DRIVER.read_text())
    except OSError:
        return None
    return match and match.group(1)


def driver_problem() -> str | None:
    """What is wrong with the driver for the CUDA that this torch was built with; None where nothing is, or where torch
    was built without."""
    import torch

    if torch.version.cuda is None:
        return "this torch was built without CUDA: install the plain one of PyPI"
    oldest = DRIVERS.get(int(torch.version.cuda.split(".")[0]))
    version = driver()
    if version is None:
        return "no NVIDIA driver is loaded"
    if oldest is not None and int(version.split(".")[0]) < oldest:
        return f"its driver is {version}, and CUDA {torch.version.cuda} needs {oldest} or later"
    return None
