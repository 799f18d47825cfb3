"""Build DeepSpeed's CPU operator ahead of time: `python -m gamut.train.build`.

The first process that joins a process group on a CPU compiles it (about 45 s). Ranks that start together would all wait
for one of them, and a short timeout would call that a hang.
"""

from __future__ import annotations

import os
import sys


def build() -> None:
    """Compile the operator if this machine has not yet. A world on GPUs does not need it: nothing is done."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    if os.environ["DS_ACCELERATOR"] != "cpu":
        return
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and builder.is_compatible(verbose=False):
        builder.load(verbose=False)


if __name__ == "__main__":
    build()
    sys.exit(0)
