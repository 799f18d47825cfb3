"""The table of heads as Markdown and JSON, and score over cost as pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from gamut.errors import RunError
from gamut.files import write_text
from gamut.models.cost import AST_MULTIPLY_ADDS, AST_PARAMETERS
from gamut.track.figures import new_figure

if TYPE_CHECKING:
    from finetune.table1 import Row


def markdown(rows: Sequence[Row]) -> str:
    """Encoder, head, score, parameters, cost and speed-up, a line a row."""
    metric = next((row.metric for row in rows if row.metric), "")
    head = ["encoder", "layers x dim", "head", *([f"{metric}, mean", "rounds", "learning rate"] if metric else [])]
    head += ["parameters", "multiply-adds", "FLOPs", "speed-up over AST"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        line = [row.encoder, f"{row.layers} x {row.dim}", row.head]
        if metric:
            spread = " ".join(f"{100 * score:.1f}" for score in row.scores)
            line += [f"{100 * row.mean:.1f}", spread, row.rate or "recipe's"]
        cost = row.cost
        line += [amount(cost.parameters), amount(cost.multiply_adds), amount(cost.flops)]
        lines.append([*line, faster(cost.speed_up)])
    note = (
        "\nA multiply-add is two FLOPs; both are of the head alone, on one clip, as torch counts them (fvcore's five a "
        f"value of a layer norm). AST: {AST_PARAMETERS / 1e6:.0f} M parameters, {AST_MULTIPLY_ADDS / 1e9:.0f} G "
        "multiply-adds."
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n" + note


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
    axis = figure.subplots()
    for encoder in dict.fromkeys(row.encoder for row in rows):
        mine = sorted((row for row in rows if row.encoder == encoder), key=lambda row: row.cost.multiply_adds)
        axis.plot([row.cost.multiply_adds for row in mine], [100 * row.mean for row in mine], marker="o", label=encoder)
        for row in mine:
            at = (row.cost.multiply_adds, 100 * row.mean)
            axis.annotate(row.head, at, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axis.set_xscale("log")
    axis.set_xlabel("multiply-adds of the head, a clip")
    axis.set_ylabel(f"{rows[0].metric}, %")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def by_size(rows: Sequence[Row]) -> Figure:
    """Score over the encoder, by the values of its features a step, a line a head (Whisper-AT, Figure 5)."""
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    sizes = {row.encoder: row.layers * row.dim for row in rows}
    for head in dict.fromkeys(row.head for row in rows):
        mine = sorted((row for row in rows if row.head == head), key=lambda row: sizes[row.encoder])
        axis.plot([sizes[row.encoder] for row in mine], [100 * row.mean for row in mine], marker="o", label=head)
    axis.set_xscale("log")
    axis.set_xticks(list(sizes.values()), list(sizes), rotation=20)
    axis.minorticks_off()
    axis.set_xlabel("encoder, by layers x dimensions")
    axis.set_ylabel(f"{rows[0].metric}, %")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def report(rows: Sequence[Row], out: Path) -> None:
    """Print the table; write it and the pictures into `out`. Raises RunError where that cannot be."""
    table = markdown(rows)
    content = [asdict(row) | {"mean": row.mean if row.scores else None, "flops": row.cost.flops} for row in rows]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "table1.md", table + "\n")
        write_text(out / "table1.json", json.dumps({"rows": content}, indent=1))
        files = ["table1.md", "table1.json"]
        if rows[0].scores:
            by_cost(rows).savefig(out / "cost.png", dpi=110)
            files.append("cost.png")
        if rows[0].scores and len({row.encoder for row in rows}) > 1:
            by_size(rows).savefig(out / "sizes.png", dpi=110)
            files.append("sizes.png")
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}. Give another with --out.") from error
    print(f"{table}\n\nwritten to {out}: {', '.join(files)}", flush=True)
