"""The repeated blocks of a model computed twice, so that their activations need not be kept.

No module and no name is added: weights and checkpoints stay what they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from fairscale.nn.checkpoint import checkpoint_wrapper
from torch import nn

Forward = Callable[..., Any]


def compute_twice(blocks: list[nn.Module], activations: str, device: torch.device) -> None:
    """Have blocks keep only their input for the backward and run their forward again there.

    activations: `recompute`, or `offload`, which keeps that input in CPU memory.
    """
    # fairscale asks for the autocast of CUDA by a name that torch has renamed.
    warnings.filterwarnings("ignore", message=".*torch.cuda.amp.autocast.*", category=FutureWarning)
    for block in blocks:
        _compute_twice(block, device.type, activations == "offload")


def _replace_forward(block: nn.Module, forward: Forward) -> None:
    kind = type(block)
    block.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _compute_twice(block: nn.Module, device: str, offload: bool) -> None:
    """fairscale's checkpoint_wrapper, with the second forward under the autocast of the first.

    By itself it restores none on a CPU and float16 on CUDA, whatever the first forward's was: the gradients would be
    those of another computation.
    """
    plain = type(block).forward

    def under(self: nn.Module, *arguments: Any, autocast: tuple[bool, torch.dtype]) -> Any:
        enabled, kind = autocast
        with torch.autocast(device, dtype=kind, enabled=enabled):
            return plain(self, *arguments)

    _replace_forward(block, under)
    checkpoint_wrapper(block, offload_to_cpu=offload)
    twice: Forward = block.forward

    def forward(*arguments: Any) -> Any:
        now = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        return twice(*arguments, autocast=now)

    block.forward = forward  # type: ignore[method-assign]
