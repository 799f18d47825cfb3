"""DeepSpeed's CPU operator, built once and never waited for in vain: `python -m gamut.train.build`.

The first process that joins a process group on a CPU compiles it (about 45 s). Left to itself, torch's build guards it
with a file that a killed process leaves behind, and whoever comes later waits for that file for ever. So it is built
and loaded here first, under a lock of the kernel's that ends with its holder; DeepSpeed then finds it loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from subprocess import SubprocessError

from gamut import files
from gamut.accelerator import CHOICE
from gamut.commands import command
from gamut.errors import RunError

FOLDER = "TORCH_EXTENSIONS_DIR"  # torch's name for where it builds
BATON = "lock"  # the file that torch leaves behind when it is killed
REMEDY = "Install them: `apt install g++ python3-dev` on Debian and Ubuntu, `pip install ninja`."


def own_tools_first() -> None:
    """Have the ninja beside this Python come before any other on PATH.

    Builds by two versions of ninja (from 1.12 on the hash of a command is another) each call the other's result
    outdated: with the system's and this one in turn, every start of a run would compile for a minute.
    """
    tools = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != tools:
        os.environ["PATH"] = f"{tools}{os.pathsep}{path}"


def operators() -> Path:
    """Where operators are built: TORCH_EXTENSIONS_DIR, or a folder for this environment on this kind of processor.

    Environments that shared one would each call the other's build outdated, and compile at every start; the operator
    uses the instructions of the processor that it was built on, and a home folder may be shared by many kinds.
    """
    if FOLDER not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        kind = f"{sys.prefix} {sys.version} {_instructions()}"
        os.environ[FOLDER] = str(cache / "gamut" / "operators" / hashlib.sha256(kind.encode()).hexdigest()[:16])
    return Path(os.environ[FOLDER])


def build() -> None:
    """Compile the operator if this environment has not yet, and load it; on GPUs, which do not need it, do nothing.

    Processes that call this together wait for the first of them. Raises RunError where it cannot be compiled.
    """
    own_tools_first()
    folder = operators()
    if os.environ.setdefault(CHOICE, "cpu") != "cpu":
        return
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder / ".turn"):
        for baton in folder.glob(f"*/{BATON}"):
            baton.unlink(missing_ok=True)  # of a process that was killed: the living ones wait for their turn
        if not any(folder.glob("*/*.so")):
            print("compiling how ranks on CPUs talk to each other: a minute, once in this environment", flush=True)
        try:
            builder.load(verbose=False)
        except (RuntimeError, ImportError, OSError, SubprocessError) as error:
            missing = lacking()
            why = f"there is no {' and no '.join(missing)}. {REMEDY}" if missing else str(error).strip()[-500:]
            raise RunError(f"DeepSpeed's operator for CPUs cannot be compiled: {why}") from error


def lacking() -> list[str]:
    """What is not here of what compiling takes: a C++ compiler, ninja, the headers of this Python."""
    own_tools_first()
    missing = [name for name in (os.environ.get("CXX") or "g++", "ninja") if shutil.which(name) is None]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append(f"Python.h of Python {platform.python_version()}")
    return missing


@command
def main() -> None:
    """Build it, or say in a sentence why not."""
    build()


def _instructions() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
