"""Block-diagonal attention on the CPU, forward and backward: ours beside dense masks, padding and nested tensors.

    python bench/attention.py [--rounds 5] [--threads 1] [--only attention|block|step|memory]

A row of 2,048 tokens of 8 clips, alike and of odd lengths; 12 heads of 64. The peers:

    dense mask   scaled_dot_product_attention with the whole row's block-diagonal mask (packed rows are mostly run so)
    written out  softmax(Q K^T) V with that mask, which keeps a square of the row for every head
    padded       a batch [clips, longest] with a mask for the padding, which every other layer computes, too
    nested       scaled_dot_product_attention of torch's jagged nested tensors

Then a whole ViT-B block, and a training step of a tiny classifier (patches to gradients). All take turns; medians of
CPU time (of elapsed time with several threads) and their ratios are printed, and the largest difference of outputs and
gradients to a dense mask's. Last comes memory: the most that is allocated during forward and backward, in rows of 4 to
32 clips of 128 tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.models import vit
from gamut.models.attention import attention
from gamut.models.backbone import SIZES, sized
from gamut.models.classifier import ClassifierNetwork
from gamut.models.initialise import initialise, unfilled
from gamut.models.layout import Layout, layout

HEADS, WIDTH = 12, 64
PACKS = {
    "8 clips of 256 tokens": (512,) * 8,
    "8 clips of 96 to 376 tokens": (336, 656, 480, 544, 752, 192, 624, 512),
}
DENSE, WRITTEN, PADDED, NESTED, OURS = "dense mask", "written out", "padded", "nested", "gamut"
ALL = (DENSE, WRITTEN, PADDED, NESTED, OURS)
Way = Callable[[], list[torch.Tensor]]  # runs once; outputs and gradients of the row's tokens


def lay(sizes: tuple[int, ...]) -> Layout:
    return layout(torch.tensor(sizes), sizes, class_token=False)


def places(where: Layout) -> torch.Tensor:
    """int64 [T]: where each token of the row lies in a padded batch."""
    within = torch.arange(where.tokens) - where.cu_seqlens[:-1].long()[where.segment]
    return where.segment * where.max_length + within


def padded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, real: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """[clips * longest, heads, d], a clip at every `longest`; real: bool [clips, longest]."""
    q, k, v = (x.unflatten(0, real.shape).transpose(1, 2) for x in (q, k, v))
    return (
        F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None], scale=scale)
        .transpose(1, 2)
        .flatten(0, 1)
    )


def written_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, where: Layout, scale: float | None
) -> torch.Tensor:
    allowed = where.segment[:, None] == where.segment[None, :]
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, float("-inf")).softmax(-1), v)


def nested_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, where: Layout, scale: float | None
) -> torch.Tensor:
    offsets = where.cu_seqlens.long()
    q, k, v = (torch.nested.nested_tensor_from_jagged(x.contiguous(), offsets).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(SDPBackend.MATH):  # torch asks the CUDA driver about the others, also where there is none
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).values()


def attend(name: str, where: Layout) -> Callable[..., torch.Tensor]:
    """`gamut.models.attention.attention` in one of the ways, for rows (or, padded, batches) as that way has them."""
    if name in (DENSE, OURS):
        return functools.partial(attention, backend="dense" if name == DENSE else "loop")
    if name == WRITTEN:
        return lambda q, k, v, laid, scale=None: written_attention(q, k, v, where, scale)
    if name == NESTED:
        return lambda q, k, v, laid, scale=None: nested_attention(q, k, v, where, scale)
    real = torch.arange(where.max_length) < torch.tensor(where.lengths)[:, None]
    return lambda q, k, v, laid, scale=None: padded_attention(q, k, v, real, scale)


def rows_of(name: str, where: Layout) -> tuple[Layout, torch.Tensor]:
    """The layout that a model sees in this way, and where the row's tokens lie in it."""
    if name != PADDED:
        return where, torch.arange(where.tokens)
    return lay((max(where.widths) * 16,) * where.segments), places(where)


def spread(x: torch.Tensor, place: torch.Tensor, rows: int) -> torch.Tensor:
    return x if len(x) == rows else x.new_zeros(rows, *x.shape[1:]).index_copy(0, place, x)


def attentions(where: Layout, names: tuple[str, ...] = ALL) -> dict[str, Way]:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(where.tokens, 3, HEADS, WIDTH, generator=generator)
    weight = torch.randn(where.tokens, HEADS, WIDTH, generator=generator)

    def way(name: str) -> Way:
        laid, place = rows_of(name, where)
        qkv, weights = spread(row, place, laid.tokens).requires_grad_(), spread(weight, place, laid.tokens)
        function = attend(name, where)

        def run() -> list[torch.Tensor]:
            result = function(*qkv.unbind(1), laid)
            return [result.detach()[place], *(g[place] for g in torch.autograd.grad(result, [qkv], weights))]

        return run

    return {name: way(name) for name in names}


def blocks(where: Layout, names: tuple[str, ...] = ALL) -> dict[str, Way]:
    """A block of ViT-B, with each attention inside."""
    with unfilled():
        block = vit.Block(SIZES["b"])
    initialise(block, seed=0)
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(where.tokens, HEADS * WIDTH, generator=generator)
    weight = torch.randn(where.tokens, HEADS * WIDTH, generator=generator)

    def way(name: str) -> Way:
        laid, place = rows_of(name, where)
        x, weights = spread(row, place, laid.tokens).requires_grad_(), spread(weight, place, laid.tokens)

        def run() -> list[torch.Tensor]:
            result = block(x, laid, None)
            of_x, of_weight = torch.autograd.grad(result, [x, block.attn.qkv.weight], weights)
            return [result.detach()[place], of_x[place], of_weight]

        return with_attention(run, attend(name, where))

    return {name: way(name) for name in names}


def steps(where: Layout) -> dict[str, Way]:
    """Forward and backward of a tiny classifier: patches to logits of 50 classes, to the gradients of all weights."""
    model = dataclasses.replace(sized("tiny"), positions="factorised", pooling="attention", table_frames=1024)
    network = ClassifierNetwork(model, 50, seed=0)
    row = torch.randn(where.tokens, 256, generator=torch.Generator().manual_seed(0))

    def way(name: str) -> Way:
        laid, place = rows_of(name, where)
        patches = spread(row, place, laid.tokens)

        def run() -> list[torch.Tensor]:
            tokens = network.backbone(patches, laid)
            logits = network.head(network.backbone.pool(tokens if laid is where else tokens[place], where))
            return [logits.detach(), *torch.autograd.grad(logits.logsumexp(1).sum(), list(network.parameters()))]

        return with_attention(run, attend(name, where))

    return {name: way(name) for name in (DENSE, PADDED, OURS)}


def with_attention(run: Way, function: Callable[..., torch.Tensor]) -> Way:
    def inside() -> list[torch.Tensor]:
        before, vit.attention = vit.attention, function
        try:
            return run()
        finally:
            vit.attention = before

    return inside


def difference(mine: list[torch.Tensor], reference: list[torch.Tensor]) -> str:
    return f"{max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(mine, reference)):.0e}"


def peak(way: Way) -> int:
    """The most bytes that are allocated at a time while the way runs, beyond what was there before."""
    way()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        way()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def memory(console: Console) -> None:
    """Peaks in rows of more and more clips of 128 tokens."""
    for what, make, names in (
        ("attention", attentions, (WRITTEN, DENSE, OURS)),
        ("ViT-B block", blocks, (DENSE, OURS)),
    ):
        table = Table(f"peak of {what}, MB", *(f"{clips} clips" for clips in (4, 8, 16, 32)), "from 4 to 32")
        for name in names:
            peaks = [peak(make(lay((256,) * clips), (name,))[name]) / 1e6 for clips in (4, 8, 16, 32)]
            table.add_row(name, *(f"{mega:.0f}" for mega in peaks), f"{peaks[-1] / peaks[0]:.1f}x")
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["attention", "block", "step", "memory"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
    clock = time.process_time if options.threads == 1 else time.perf_counter
    console = Console()
    kinds = {"attention": attentions, "block": blocks, "step": steps}
    for what in [options.only] if options.only in kinds else kinds if options.only is None else []:
        for title, sizes in PACKS.items():
            ways = kinds[what](lay(sizes))
            results = {name: way() for name, way in ways.items()}  # and warms up
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    since = clock()
                    way()
                    times[name].append(clock() - since)
            median = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
            table = Table(f"{what}, {title}: forward + backward", "ms", f"to {OURS}", "max difference / max")
            for name, taken in median.items():
                apart = difference(results[name], results[DENSE]) if name != DENSE else ""
                table.add_row(name, f"{taken:.0f}", f"{taken / median[OURS]:.2f}", apart)
            console.print(table)
    if options.only in (None, "memory"):
        memory(console)


if __name__ == "__main__":
    main()
