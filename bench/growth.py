"""How a step's cost grows with clip length, clips a forward, GPUs and model size: the account's forecasts as figures.

    python bench/growth.py [--gpu h200] [--out docs/figures/growth.svg]

ASiT ViT-B unless it is the model that grows, and one thing at a time. Nothing is computed: it needs no GPU. Prints the
numbers as a table, for docs/scaling.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from gamut.estimate.forecast import forecast
from gamut.estimate.rates import SHEETS, Rates, of_sheet
from gamut.estimate.step import account
from gamut.estimate.work import work_of
from gamut.numbers import HOP, RATE
from gamut.recipe.load import load_recipe

CLIPS = 40  # a forward, unless it is their number that grows
NODE = 8  # GPUs
MODELS = {"tiny": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}


@dataclass(frozen=True)
class Point:
    """A forecast of one step."""

    what: str  # grows
    at: str
    x: float
    clips: float  # clips/s a GPU
    gigabytes: float
    mfu: float
    sent: float  # share of the step that is communication


def point(
    rates: Rates, what: str, at: str, x: float, words: Sequence[str] = (), clips: int = CLIPS, ranks: int = 1
) -> Point:
    """A GPU's step with one forward of so many clips, on so many GPUs that each have as many."""
    own = ("data=nowhere", "step.packs=1", f"step.clips={clips}", "loader.packs_per_forward=1")
    work = replace(work_of(load_recipe("pretrain", "asit_b", (*own, *words)), 1), ranks=ranks)
    made = forecast(account(load_recipe("pretrain", "asit_b", (*own, *words)), work, "cuda"), rates, -(-ranks // NODE))
    step = made.step - made.seconds["loader"]
    flops = sum(call.flops for call in made.account.phase("prepare", "micro"))
    return Point(
        what, at, x, work.clips / step, made.gigabytes, flops / step / rates.peak, made.seconds["communication"] / step
    )


def points(rates: Rates) -> list[Point]:
    found = []
    for frames in (96, 192, 400, 592, 992, 1984, 2992):
        seconds = frames * HOP / RATE
        more = (f"views.frames={frames}", f"model.table_frames={max(592, frames)}")
        found.append(point(rates, "seconds of a view", f"{seconds:.1f}", seconds, more))
    for clips in (5, 10, 20, 40, 80, 160):
        found.append(point(rates, "clips a forward", str(clips), clips, clips=clips))
    for ranks in (1, 8, 64, 512, 4096):
        found.append(point(rates, "GPUs", f"{ranks:,}", ranks, ranks=ranks))
    for name, (dim, depth, heads) in MODELS.items():
        more = (f"model.dim={dim}", f"model.depth={depth}", f"model.heads={heads}")
        made = point(rates, "model", f"ViT-{name}", 12.0 * dim * dim * depth / 1e6, more)
        found.append(made)
    return found


def draw(found: list[Point], path: Path, title: str) -> None:
    """Four panels: clips/s (left axis) and memory (right axis)."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "gamut"  # the same file from the same numbers
    figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    for axis, what in zip(axes, dict.fromkeys(one.what for one in found)):
        own = [one for one in found if one.what == what]
        x = [one.x for one in own]
        axis.loglog(x, [one.clips for one in own], "o-", color="C0")
        axis.set_xlabel(f"{what}, M parameters of blocks" if what == "model" else what)
        axis.set_ylabel("clips/s a GPU", color="C0")
        other = axis.twinx()
        other.loglog(x, [one.gigabytes for one in own], "s--", color="C1")
        other.set_ylabel("GB a GPU", color="C1")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=SHEETS, default="h200")
    parser.add_argument("--out", type=Path, help="where to draw them (.svg)")
    options = parser.parse_args()
    found = points(of_sheet(options.gpu))
    print("| what grows | | clips/s a GPU | GB a GPU | MFU | communication |")
    print("| --- | --- | --- | --- | --- | --- |")
    for one in found:
        print(f"| {one.what} | {one.at} | {one.clips:,.0f} | {one.gigabytes:.1f} | {one.mfu:.0%} | {one.sent:.1%} |")
    if options.out:
        draw(found, options.out, f"ASiT ViT-B, forecast for {options.gpu.upper()}")


if __name__ == "__main__":
    main()
