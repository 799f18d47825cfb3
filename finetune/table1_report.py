"""The table of heads as Markdown and JSON, and score over cost as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gamut.evaluate import METRICS, Metric
from gamut.models.cost import AST_MULTIPLY_ADDS, AST_PARAMETERS, Cost
from gamut.track.figures import new_figure
from gamut.track.tables import markdown, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """A head on an encoder."""

    encoder: str
    layers: int
    dim: int
    head: str
    cost: Cost
    scores: tuple[float, ...] = ()  # of every round
    metric: str = ""
    rate: str = ""  # learning rate that was chosen

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores)) if self.scores else float("nan")


def table(rows: Sequence[Row]) -> str:
    """Encoder, head, score, parameters, cost and speed-up, a line a row."""
    metric = next((METRICS[row.metric] for row in rows if row.metric), None)
    head = ["encoder", "layers x dim", "head", *([f"{metric.name}, mean", "rounds", "learning rate"] if metric else [])]
    head += ["parameters", "multiply-adds", "FLOPs", "speed-up over AST"]
    lines = []
    for row in rows:
        line = [row.encoder, f"{row.layers} x {row.dim}", row.head]
        if metric:
            line += [_number(row.mean, metric), " ".join(_number(score, metric) for score in row.scores)]
            line += [row.rate or "recipe's"]
        cost = row.cost
        line += [amount(cost.parameters), amount(cost.multiply_adds), amount(cost.flops)]
        lines.append([*line, faster(cost.speed_up)])
    note = (
        "\nA multiply-add is two FLOPs; both are of the head alone, on one clip, as torch counts them (fvcore's five a "
        f"value of a layer norm). AST: {AST_PARAMETERS / 1e6:.0f} M parameters, {AST_MULTIPLY_ADDS / 1e9:.0f} G "
        "multiply-adds."
    )
    return markdown(head, lines) + "\n" + note


def _number(score: float, metric: Metric) -> str:
    """As in a column whose head names the metric: without a sign of percent."""
    return metric.show(score).removesuffix("%")


def amount(count: float) -> str:
    """`3.17 G`, `0.68 M`, `2.9 k`"""
    if count >= 1e8:
        return f"{count / 1e9:.2f} G"
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def faster(times: float) -> str:
    """`195,000x`, `8.1x`: two digits."""
    return f"{times:,.0f}x" if times >= 10 else f"{times:.1f}x"


def by_cost(rows: Sequence[Row]) -> Figure:
    """Score over multiply-adds, a line an encoder, a point a head."""
    figure = new_figure(7, 4.5)
    axis, metric = figure.subplots(), METRICS[rows[0].metric]
    for encoder in dict.fromkeys(row.encoder for row in rows):
        mine = sorted((row for row in rows if row.encoder == encoder), key=lambda row: row.cost.multiply_adds)
        axis.plot(
            [row.cost.multiply_adds for row in mine],
            [metric.scale * row.mean for row in mine],
            marker="o",
            label=encoder,
        )
        for row in mine:
            at = (row.cost.multiply_adds, metric.scale * row.mean)
            axis.annotate(row.head, at, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axis.set_xscale("log")
    axis.set_xlabel("multiply-adds of the head, a clip")
    axis.set_ylabel(metric.title)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def by_size(rows: Sequence[Row]) -> Figure:
    """Score over the encoder, by the values of its features a step, a line a head (Whisper-AT, Figure 5)."""
    figure = new_figure(7, 4.5)
    axis, metric = figure.subplots(), METRICS[rows[0].metric]
    sizes = {row.encoder: row.layers * row.dim for row in rows}
    for head in dict.fromkeys(row.head for row in rows):
        mine = sorted((row for row in rows if row.head == head), key=lambda row: sizes[row.encoder])
        axis.plot(
            [sizes[row.encoder] for row in mine], [metric.scale * row.mean for row in mine], marker="o", label=head
        )
    axis.set_xscale("log")
    axis.set_xticks(list(sizes.values()), list(sizes), rotation=20)
    axis.minorticks_off()
    axis.set_xlabel("encoder, by layers x dimensions")
    axis.set_ylabel(metric.title)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def report(rows: Sequence[Row], out: Path) -> None:
    """Print the table; write it and the pictures into `out`. Raises RunError where that cannot be."""
    content = [asdict(row) | {"mean": row.mean if row.scores else None, "flops": row.cost.flops} for row in rows]
    plots = {"cost": by_cost(rows)} if rows[0].scores else {}
    plots |= {"sizes": by_size(rows)} if rows[0].scores and len({row.encoder for row in rows}) > 1 else {}
    write(out, "table1", table(rows), {"rows": content}, plots)
