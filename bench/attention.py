"""Block-diagonal attention on the CPU, forward and backward: ours beside a dense mask.

    python bench/attention.py [--rounds 5] [--threads 1]

A row of 2,048 tokens of 8 clips, alike and of odd lengths; 12 heads of 64. The peer is scaled_dot_product_attention
with the whole row's block-diagonal mask, which is how packed rows are mostly run. Then a whole ViT-B block. Both take
turns; medians and their ratio are printed, and the largest difference of outputs and gradients.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.models import vit
from gamut.models.attention import attention
from gamut.models.initialise import initialise, unfilled
from gamut.models.layout import Layout, layout
from gamut.models.registry import SIZES

HEADS, WIDTH = 12, 64
PACKS = {
    "8 clips of 256 tokens": (512,) * 8,
    "8 clips of 96 to 376 tokens": (336, 656, 480, 544, 752, 192, 624, 512),
}
PEER, OURS = "dense mask", "gamut"
Way = Callable[[], list[torch.Tensor]]  # runs once; outputs and gradients


def attentions(where: Layout) -> dict[str, Way]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(where.tokens, 3, HEADS, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(where.tokens, HEADS, WIDTH, generator=generator)

    def run(backend: str) -> list[torch.Tensor]:
        q, k, v = qkv.unbind(1)
        result = attention(q, k, v, where, backend=backend)
        return [result.detach(), *torch.autograd.grad(result, qkv, weight)]

    return {PEER: functools.partial(run, "dense"), OURS: functools.partial(run, "loop")}


def blocks(where: Layout) -> dict[str, Way]:
    """A block of ViT-B, with the one and the other attention inside."""
    with unfilled():
        block = vit.Block(SIZES["b"])
    initialise(block, seed=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(where.tokens, HEADS * WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(where.tokens, HEADS * WIDTH, generator=generator)

    def run(backend: str) -> list[torch.Tensor]:
        inside, vit.attention = vit.attention, functools.partial(attention, backend=backend)
        try:
            result = block(x, where, None)
            return [result.detach(), *torch.autograd.grad(result, [x, block.attn.qkv.weight], weight)]
        finally:
            vit.attention = inside

    return {PEER: functools.partial(run, "dense"), OURS: functools.partial(run, "loop")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("forward + backward", f"{PEER}, ms", f"{OURS}, ms", "ratio", "max difference / max")
    for what, make in (("attention", attentions), ("ViT-B block", blocks)):
        for title, sizes in PACKS.items():
            ways = make(layout(torch.tensor(sizes), sizes, class_token=False))
            results = {name: way() for name, way in ways.items()}  # and warms up
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    since = time.perf_counter()
                    way()
                    times[name].append(time.perf_counter() - since)
            peer, ours = (1e3 * statistics.median(times[name]) for name in (PEER, OURS))
            pairs = zip(results[PEER], results[OURS])
            difference = max((((a - b).abs().max()) / a.abs().max()).item() for a, b in pairs)
            table.add_row(f"{what}, {title}", f"{peer:.0f}", f"{ours:.0f}", f"{peer / ours:.2f}", f"{difference:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
