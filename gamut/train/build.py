"""Build DeepSpeed's CPU operator ahead of time: `python -m gamut.train.build`.

The first process that joins a process group on a CPU compiles it (about 45 s). Ranks that start together would all wait
for one of them, and a short timeout would call that a hang.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_tools_first() -> None:
    """Have the ninja beside this Python come before any other on PATH.

    Builds by two versions of ninja (from 1.12 on the hash of a command is another) each call the other's result
    outdated: with the system's and this one in turn, every start of a run would compile for a minute.
    """
    tools = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != tools:
        os.environ["PATH"] = f"{tools}{os.pathsep}{path}"


def build() -> None:
    """Compile the operator if this machine has not yet. A world on GPUs does not need it: nothing is done."""
    own_tools_first()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    if os.environ["DS_ACCELERATOR"] != "cpu":
        return
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and builder.is_compatible(verbose=False):
        builder.load(verbose=False)


if __name__ == "__main__":
    build()
