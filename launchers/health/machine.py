"""This machine: Python, libraries, driver, GPUs, compilers, limits."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
from importlib import metadata

from gamut import accelerator
from gamut.commands import ROOT
from gamut.errors import RunError
from launchers.health import BROKEN, FINE, WARNING, Check

OLDEST_PYTHON = (3, 11)
SHARED_GB, OPEN_FILES, CLIP_FORMATS = 1.0, 4096, "mp4, m4a, webm, wma, ..."


def look() -> list[Check]:
    """All checks of the machine, in the order in which to fix them."""
    return [_python(), _libraries(), _driver(), *_gpus(), _nccl(), _compilers(), _ffmpeg(), *_limits()]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    problem = None if sys.version_info[:2] >= OLDEST_PYTHON else f"Python {version}"
    return Check.of("Python", f"{version}, {platform.machine()}", problem, "Gamut needs Python 3.11 or later.")


def pins() -> dict[str, str]:
    """Library -> the version that Gamut is tested with, according to the clone or the installed package."""
    if (ROOT / "requirements.txt").is_file():
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    else:
        lines = [line for line in metadata.requires("gamut") or [] if ";" not in line]
    found = (re.match(r"([\w.-]+)\s*(?:==|~=)\s*([\w.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _libraries() -> Check:
    missing, others = [], []
    wanted = pins()
    for name, pin in wanted.items():
        try:
            version = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version != pin:
            others.append(f"{name} {version} ({pin})")
    remedy = "Install them: pip install -r requirements.txt, or pip install gamut."
    if missing:
        return Check("libraries", BROKEN, f"missing: {', '.join(missing)}", remedy)
    if others:
        found = f"not the tested versions: {', '.join(others)}"
        return Check("libraries", WARNING, found, remedy)
    return Check("libraries", FINE, f"all {len(wanted)} as tested, torch {wanted['torch']}")


def _driver() -> Check:
    import torch

    version, expected = accelerator.driver(), accelerator.given(os.environ)
    if version is None and expected is None:
        return Check("driver", FINE, "no NVIDIA GPU: runs here are on the CPU")
    oldest = accelerator.DRIVERS.get(int((torch.version.cuda or "0").split(".")[0]), "a matching one")
    remedy = f"Install NVIDIA's driver {oldest} or later, or a torch for the CUDA of this driver."
    found = f"NVIDIA {version}, torch is built with CUDA {torch.version.cuda}"
    return Check.of("driver", found, accelerator.driver_problem(), remedy)


def _gpus() -> list[Check]:
    import torch

    try:
        chosen = accelerator.accelerator()
    except RunError as error:
        return [Check("GPUs", BROKEN, str(error).partition(". `gamut")[0], "See the driver; then `nvidia-smi`.")]
    if chosen == "cpu":
        return []
    checks = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
        problem = None
        try:
            ones = torch.ones(256, 256, device=f"cuda:{number}", dtype=torch.bfloat16)
            if float((ones @ ones).float().sum()) != 256.0**3:
                problem = f"{found}: a product of matrices is wrong"
            free = torch.cuda.mem_get_info(number)[0]
            found += f", {free / 2**30:.0f} free"
        except RuntimeError as error:
            problem = f"{found}: {str(error).splitlines()[0]}"
        checks.append(
            Check.of(f"GPU {number}", found, problem, "Look at `nvidia-smi` and dmesg; leave this GPU out of jobs.")
        )
    return checks


def _nccl() -> Check:
    import torch

    if torch.distributed.is_nccl_available():
        return Check("NCCL", FINE, ".".join(map(str, torch.cuda.nccl.version())))
    state = FINE if accelerator.given(os.environ) is None else BROKEN
    return Check("NCCL", state, "not in this torch", "Install the plain torch of PyPI." if state == BROKEN else "")


def _compilers() -> Check:
    from gamut.train.build import REMEDY, lacking

    missing = lacking()
    return Check.of(
        "compilers",
        "g++, ninja and Python's headers",
        f"no {' and no '.join(missing)}" if missing else None,
        f"DeepSpeed compiles an operator for ranks on a CPU, torch.compile its kernels. {REMEDY}",
    )


def _ffmpeg() -> Check:
    found = shutil.which("ffmpeg")
    return Check.of(
        "ffmpeg",
        str(found),
        None if found else "not on PATH",
        f"Install it to convert {CLIP_FORMATS}; WAV, FLAC, Ogg and MP3 are read without.",
        WARNING,
    )


def _limits() -> list[Check]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = None if files >= OPEN_FILES else f"{files} a process"
    checks = [
        Check.of("open files", f"{files} a process", few, "ulimit -n 65536, in `setup` of the cluster file.", WARNING)
    ]
    try:
        shared = shutil.disk_usage("/dev/shm").total / 1e9  # noqa: S108 (asked for its size)
    except OSError:
        return checks
    small = None if shared >= SHARED_GB else f"{shared:.2f} GB"
    remedy = "Loader workers hand over batches through it: docker run --shm-size=8g."
    return [*checks, Check.of("/dev/shm", f"{shared:.1f} GB", small, remedy)]  # noqa: S108 (a name)
