"""Functions compiled by torch.compile, and where what it made is kept."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Forward = Callable[..., Any]

BACKEND = "inductor"
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's name for where it keeps what it has compiled


def set_up() -> None:
    """What torch is to be told before anything is compiled."""
    os.environ.setdefault(CACHE, str(_cache()))
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # DDP's own splitting of graphs is for whole models; the gradients of a block are ready together anyway.
    dynamo.optimize_ddp = False
    inductor.deterministic = torch.are_deterministic_algorithms_enabled()  # gamut.train.world says it to torch alone
    inductor.compile_threads = 1  # a few small graphs: no processes beside the rank that could outlive it


@functools.cache
def compiled_function(plain: Forward, as_written: bool = False) -> Forward:
    """A function of tensors, compiled once for any number of rows from 2 on; for models with compiled blocks.

    as_written: every product is rounded before it is added, as torch's operators do; a GPU would join the two.
    """
    set_up()
    from torch.fx.experimental import _config

    shapes: Any = _config
    options: dict[str, Any] | None = (
        {"emulate_precision_casts": True} if as_written else None
    )  # its name in torch says less than it does
    fast: Forward = torch.compile(plain, dynamic=True, fullgraph=True, backend=BACKEND, options=options)
    # Left to itself torch takes what is equal at the first call (where two pieces begin in their tensors) for equal
    # ever after, and compiles anew where it is not.
    return shapes.patch(use_duck_shape=False)(fast)  # type: ignore[no-any-return]


def _cache() -> Path:
    """Where compiled code is kept from one run to the next: for us alone, as torch executes what it finds there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamut" / "compiled"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cache
