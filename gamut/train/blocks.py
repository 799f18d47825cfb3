"""The repeated blocks of a model compiled, and computed twice so that their activations need not be kept.

No module and no name is added: weights and checkpoints stay what they are.
"""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton

from gamut import compiler
from gamut.compiler import Forward
from gamut.errors import RecipeError
from gamut.models.vit import Block
from gamut.recipe import schema

ZEROS = 8  # tokens


def prepare(blocks: list[nn.Module], copies: list[nn.Module], compute: schema.Compute, device: torch.device) -> str:
    """Change the forward of a model's blocks, and of those of its frozen copies, as the recipe's `compute` says.

    To be called before an engine takes the model. Returns what is to be said of it, a line, or "". Raises RecipeError
    where that cannot be done and the recipe asks for it; what only is the default is left out then, and said.
    """
    ours = bool(blocks) and all(isinstance(block, Block) for block in blocks + copies)
    if (compute.compile and not ours) or (compute.activations != "keep" and not blocks):
        raise RecipeError(
            "The model of this recipe has no transformer blocks of ours to compile or to compute twice: take "
            f"{'compute.compile' if compute.compile else 'compute.activations'} out."
        )
    said = ""
    if ours and compute.compiles(device.type):
        problem = _no_compiler(device)
        if problem and compute.compile:
            raise RecipeError(f"compute.compile needs {problem}, or set compute.compile=false.")
        if problem:
            said = (
                f"warning: the blocks are not compiled, which costs memory and speed: it needs {problem}, "
                "or set compute.compile=false to run without this warning."
            )
        else:
            compile_blocks(blocks + copies)
            said = "the blocks are compiled in the first step, which takes a minute or two where it is the first time"
    if compute.activations != "keep":
        compute_twice(blocks, compute.activations, device)
    return said


def compile_blocks(blocks: list[nn.Module]) -> None:
    """Have each block's forward compiled at its first call, once for all of them and for any number of tokens."""
    compiler.set_up()
    for block in blocks:
        kind: Any = type(block)
        block.__class__ = _compiled(kind, compiler.BACKEND)
        block._z3_leaf = True  # type: ignore[assignment]  # ZeRO-3 gathers a block whole, and hooks nothing inside it


@functools.cache
def _compiled(kind: type, backend: str) -> type:
    """The class of blocks `kind` that is compiled but for attention; one for all blocks, as what is compiled holds for
    a class. Attention goes by the clips' lengths, and would be compiled anew for every pack of others."""
    parts = {name: _part(getattr(kind, name), backend) for name in ("before", "after")}
    return type(kind.__name__, (kind,), parts | {"compiled": True, "__module__": kind.__module__})


def _part(plain: Forward, backend: str) -> Forward:
    """A part of a block, compiled. With hooks inside it runs as it is written: what was compiled without them does not
    see them.

    An empty pack runs as a few tokens of zeros, of which nothing is kept: for no tokens torch would compile anew.
    """
    fast: Forward = torch.compile(plain, dynamic=True, fullgraph=True, backend=backend)

    def forward(self: nn.Module, x: torch.Tensor, *more: torch.Tensor | None) -> Any:
        if any(part._forward_hooks or part._forward_pre_hooks for part in list(self.modules())[1:]):
            return plain(self, x, *more)
        given = fast(self, *(None if tensor is None else _as_compiled_for(tensor) for tensor in (x, *more)))
        if len(x):
            return given
        return given[:0] if isinstance(given, torch.Tensor) else tuple(tensor[:0] for tensor in given)

    return forward


def _as_compiled_for(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, no view of another (for another's shape torch would compile anew), with zeros where it is empty."""
    if tensor.numel():
        return tensor.clone(memory_format=torch.contiguous_format) if tensor._is_view() else tensor
    zeros = tensor.new_zeros([size or ZEROS for size in tensor.shape])
    return torch.cat([tensor, zeros], dim=list(tensor.shape).index(0))


def _no_compiler(device: torch.device) -> str:
    """What is missing to compile, and the remedy; "" where nothing is. torch writes C++ for a CPU; for a GPU Triton's
    kernels, with a little C around them."""
    variable, names = ("CXX", "g++, clang++") if device.type == "cpu" else ("CC", "gcc, clang")
    chosen = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([chosen] if chosen else names.split(", "))):
        return (
            f"a compiler ({names}, or what {variable} names), and {chosen + ' is not' if chosen else 'none is'} to be "
            "found on this machine: install one"
        )
    if device.type == "cuda" and not has_triton():
        return "Triton and a GPU that it knows (Volta or later): pip install triton, in the version that torch names"
    return ""


def compute_twice(blocks: list[nn.Module], activations: str, device: torch.device) -> None:
    """Have blocks keep only their input for the backward and run their forward again there.

    activations: `recompute`, or `offload`, which keeps that input in CPU memory.
    """
    # fairscale asks for the autocast of CUDA by a name that torch has renamed.
    warnings.filterwarnings("ignore", message=".*torch.cuda.amp.autocast.*", category=FutureWarning)
    for block in blocks:
        _compute_twice(block, device.type, activations == "offload")


@functools.cache
def _under_autocast(kind: type, device: str) -> type:
    """The class of blocks `kind` with a forward that is told the autocast to run under."""
    plain: Forward = kind.forward  # type: ignore[attr-defined]

    def forward(self: nn.Module, *arguments: Any, autocast: tuple[bool, torch.dtype]) -> Any:
        enabled, dtype = autocast
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            return plain(self, *arguments)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _compute_twice(block: nn.Module, device: str, offload: bool) -> None:
    """fairscale's checkpoint_wrapper, with the second forward under the autocast of the first.

    By itself it restores none on a CPU and float16 on CUDA, whatever the first forward's was: the gradients would be
    those of another computation.
    """
    from fairscale.nn.checkpoint import checkpoint_wrapper  # here: whoever compiles alone does not need it

    kind: Any = type(block)
    block.__class__ = _under_autocast(kind, device)
    checkpoint_wrapper(block, offload_to_cpu=offload)
    twice: Forward = block.forward

    def forward(*arguments: Any) -> Any:
        now = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        return twice(*arguments, autocast=now)

    block.forward = forward  # type: ignore[method-assign]
