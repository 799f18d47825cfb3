"""Attention within segments of a packed row: one function, three back ends that give the same numbers.

`varlen` is variable-length flash attention (CUDA, half precision). `loop` calls scaled_dot_product_attention for each
run of segments of equal length: torch has no variable-length kernel for the CPU. `dense` masks the whole row
block-diagonally; it costs the square of the row, and is what the others are checked against.
"""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F

from gamut.models.layout import Layout

BACKENDS = ("auto", "varlen", "loop", "dense")


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    where: Layout,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Every token attends to the tokens of its own segment: [T, heads, d] from q, k, v of the same shape.

    scale: what q . k is multiplied with; None: 1 / sqrt(d). (ElasticAST's published weights use 1.)
    backend: auto takes `varlen` where it can run, else `loop`. Raises ValueError for an unknown one.
    """
    return _attend(q, k, v, where, where.lengths, where.cu_seqlens, where.max_length, where.segment, scale, backend)


def pooling_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    where: Layout,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """One query a segment attends to its tokens: [S, heads, d] from q [S, heads, d] and k, v [T, heads, d]."""
    segments = torch.arange(where.segments + 1, device=q.device)
    ones = (1,) * where.segments
    return _attend(q, k, v, where, ones, segments.to(torch.int32), 1, segments[:-1], scale, backend)


def cross_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    where: Layout,
    queries: tuple[torch.Tensor, tuple[int, ...], torch.Tensor],
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Any number of queries a segment attend to its tokens: [Q, heads, d] from q [Q, heads, d] and k, v [T, heads, d].

    queries: how many each segment has (int64 [S]), the same as Python numbers, and each one's segment (int64 [Q]).
    """
    counts, sizes, segment = queries
    offset = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return _attend(q, k, v, where, sizes, offset, max(sizes, default=0), segment, scale, backend)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    where: Layout,
    query_lengths: tuple[int, ...],
    query_offset: torch.Tensor,
    query_longest: int,
    query_segment: torch.Tensor,
    scale: float | None,
    backend: str,
) -> torch.Tensor:
    if backend not in BACKENDS:
        raise ValueError(f"There is no attention backend {backend!r}; there are {', '.join(BACKENDS)}.")
    if len(q) != sum(query_lengths) or len(k) != where.tokens or len(v) != where.tokens:
        raise ValueError(
            f"{len(q)} queries, {len(k)} keys and {len(v)} values do not fit a layout of {where.segments} segments "
            f"and {where.tokens} tokens."
        )
    if not len(q):
        return q + k.sum() + v.sum()  # nothing to attend to; the gradients are zeros, not absent
    if backend == "auto":
        backend = "varlen" if _flash_can(q) else "loop"
    if backend == "varlen":
        # Imported here: the module exists from torch 2.10 on and brings nothing to a CPU.
        from torch.nn.attention.varlen import varlen_attn

        offset, longest = where.cu_seqlens, where.max_length
        output = varlen_attn(q, k, v, query_offset, offset, query_longest, longest, scale=scale)
        assert isinstance(output, torch.Tensor)  # a pair only where the log-sum-exp is asked for
        return output
    if backend == "dense":
        return _dense(q, k, v, query_segment[:, None] == where.segment[None, :], scale)
    return _loop(q, k, v, query_lengths, where.lengths, scale)


def _flash_can(q: torch.Tensor) -> bool:
    half = q.dtype in (torch.float16, torch.bfloat16)
    fits = q.device.type == "cuda" and half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    return fits and torch.cuda.get_device_capability(q.device) >= (8, 0)  # the kernel is for Ampere and later


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, scale: float | None
) -> torch.Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)[0].transpose(0, 1)


def _loop(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_lengths: tuple[int, ...],
    lengths: tuple[int, ...],
    scale: float | None,
) -> torch.Tensor:
    """Neighbours of equal length go together as one batch, so a pack of equal clips is a single call."""
    runs = [(*pair, len(list(same))) for pair, same in groupby(zip(query_lengths, lengths))]
    query_split = [queries * n for queries, _, n in runs]
    split = [keys * n for _, keys, n in runs]
    outputs = []
    for (*lengths_of, n), *qkv in zip(runs, q.split(query_split), k.split(split), v.split(split)):
        each = (lengths_of[0], lengths_of[1], lengths_of[1])
        qs, ks, vs = (x.unflatten(0, (n, size)).transpose(1, 2) for x, size in zip(qkv, each))  # [n, heads, length, d]
        outputs.append(F.scaled_dot_product_attention(qs, ks, vs, scale=scale).transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
