"""What one call of torch's costs a device: operations, bytes, launches. By shapes alone; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Calls that go over their data more than once, or in a bad order: bytes are multiplied by this. An estimate.
PASSES = {
    "cumsum": 2.0,
    "sort": 16.0,  # a radix sort, a byte at a time, of keys and places
    "argsort": 16.0,
    "topk": 4.0,
    "_softmax": 1.5,
    "_log_softmax": 1.5,
    "native_layer_norm_backward": 1.5,
    "_fft_r2c": 2.0,
}
# Under deterministic algorithms these sort the places first (64-bit keys, a byte at a time), whatever they add.
SORTED = {"scatter_add", "scatter_add_", "index_add", "index_add_", "index_put", "index_put_", "_index_put_impl_"}
SORT = 24.0

LAUNCHES = {
    "nonzero": 4,
    "cumsum": 2,
    "sort": 8,
    "argsort": 8,
    "native_layer_norm_backward": 2,
    "repeat_interleave": 3,
    "linalg_vector_norm": 2,
    "_fft_r2c": 2,
    "_varlen_attn_backward": 3,
    "scatter_add_": 1,
}
COLUMNS = "sum over rows"
FOREACH = 64  # tensors that one launch of a _foreach_ takes

# Calls that read as much of their first operand as they put out, not all of it.
PICKS = {"index_select", "gather", "index", "embedding", "repeat_interleave"}
WRITES_ONLY = {"fill_", "zero_", "copy_", "zeros", "ones", "full", "arange", "zeros_like", "ones_like", "full_like"}
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "set_", "resize_"}

ATTENTION = {
    "_varlen_attn": 4.0,  # q k and p v, two operations a multiply-add
    "_varlen_attn_backward": 10.0,
}
BESIDE = "all-reduce beside"  # the backward that makes what is sent
SDPA = "_scaled_dot_product"  # of dense q, k and v [.., heads, length, d]


@dataclass(slots=True)
class Call:
    """One call on the device."""

    name: str
    kind: str  # matmul | attention | memory | communication
    flops: float
    bytes: float
    launches: int
    half: bool  # matrix products in bf16 or fp16
    line: str  # of the project, that it comes from
    phase: str
    wait: bool = False  # the host waits until the device has done all that came before
    reads: tuple[tuple[int, int], ...] = ()  # pieces of memory by number, and the bytes of them
    writes: tuple[tuple[int, int], ...] = ()
    region: str = ""  # the part of a block that `compute.compile` makes one; else ""
    backward: bool = False
    compiled: bool = False


def name_of(func: Any) -> str:
    return func._schema.name.rpartition("::")[2]


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def size(tensor: torch.Tensor) -> int:
    """Bytes of the memory that a tensor shows: what is expanded, or lies in windows over each other, counts once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride()):
        if stride or length == 0:
            count *= length
    return min(count * tensor.element_size(), tensor.untyped_storage().nbytes())


def kind_of(name: str, flops: float) -> str:
    if flops and (name in ATTENTION or name.startswith(SDPA)):
        return "attention"
    return "matmul" if flops else "memory"


def flops_of(func: Any, args: tuple, kwargs: dict, out: Any, pairs: float | None) -> float:
    """Operations of matrix products and attention. pairs: sum of queries x keys over the segments of a packed row."""
    name = name_of(func)
    if name in ATTENTION:
        first = 0 if name == "_varlen_attn" else 1
        query = args[first]
        heads, width = query.shape[1:]
        return ATTENTION[name] * (pairs or 0.0) * heads * width
    if name.startswith(SDPA):
        backward = name.endswith("backward")
        query, key = args[backward], args[backward + 1]
        return (10.0 if backward else 4.0) * query.numel() * key.shape[-2]
    counter = flop_registry.get(func.overloadpacket)
    if counter is None:
        return 0.0
    return float(counter(*args, **kwargs, out_val=out))


def bytes_of(name: str, given: Iterable[torch.Tensor], out: list[torch.Tensor], deterministic: bool) -> float:
    """Bytes that are read and written."""
    given = list(given)
    written = sum(size(tensor) for tensor in out)
    if name in WRITES_ONLY:
        read = sum(size(tensor) for tensor in given[1:]) if name == "copy_" else 0
    elif name in PICKS:
        read = written + sum(size(tensor) for tensor in given[1:])
    else:
        read = sum(size(tensor) for tensor in given)
    total = (read + written) * PASSES.get(name, 1.0)
    if deterministic and name in SORTED:
        places = max((tensor.numel() for tensor in given if tensor.dtype in (torch.int64, torch.int32)), default=0)
        total += places * 16 * SORT
    return float(total)


def launches_of(name: str, args: tuple, deterministic: bool) -> int:
    if name.startswith("_foreach"):
        count = len(args[0]) if args and isinstance(args[0], (list, tuple)) else 1
        return -(-count // FOREACH)
    return LAUNCHES.get(name, 1) + (8 if deterministic and name in SORTED else 0)
