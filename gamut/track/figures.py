"""Figures, made without a screen and without matplotlib's global state."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gamut.evaluate import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAME_SECONDS = 0.01


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches that can be saved from any thread."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # here: a command that has nothing to plot need not wait
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """A name as it stands: between two `$` matplotlib would read a formula, and refuse most. Characters that its font
    has no glyph for, as of Chinese, Japanese and Korean, are spelt in ASCII; tables and JSON have them as they are.

    >>> print(plain("A$AP, $1"))
    A\\$AP, \\$1
    >>> print(plain("いぬ, 犬"))
    inu, [72AC]
    """
    glyphs = _glyphs()
    return "".join(one if ord(one) in glyphs or one.isspace() else _spelt(one) for one in text).replace("$", r"\$")


@cache
def _glyphs() -> frozenset[int]:
    """The code points that matplotlib's own font can draw."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _spelt(character: str) -> str:
    """By its name in Unicode: the sound of a syllable or letter, `[dog face]`, or the number of an ideograph."""
    name = unicodedata.name(character, "")
    if sound := re.fullmatch(r"(?:HANGUL SYLLABLE|\w+ LETTER(?: SMALL)?) (\w+)", name):
        return sound[1].lower()
    return f"[{ord(character):X}]" if not name or "IDEOGRAPH" in name else f"[{name.lower()}]"


def reconstruction(
    spectrogram: np.ndarray,
    mask: np.ndarray,
    reconstructed: np.ndarray,
    title: str = "",
    frame_seconds: float = FRAME_SECONDS,
) -> Figure:
    """Four rows over time: a log-mel, what the model saw of it, what it made of that, and its error where masked.

    spectrogram, reconstructed: float [frames, mel]; mask: bool [frames, mel], true where hidden. One colour scale
    for the first three. Raises ValueError where the shapes differ.
    """
    if not spectrogram.shape == mask.shape == reconstructed.shape:
        raise ValueError(f"shapes differ: {spectrogram.shape}, {mask.shape}, {reconstructed.shape}")
    hidden = mask.astype(bool)
    low, high = np.percentile(spectrogram, [1, 99])
    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("clip", spectrogram, {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("seen", np.where(hidden, np.nan, spectrogram), {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("reconstructed", reconstructed, {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("error where hidden", np.where(hidden, np.abs(reconstructed - spectrogram), np.nan), {"cmap": "viridis"}),
    ]
    figure = new_figure(8, 7)
    axes = figure.subplots(len(panels), 1, sharex=True)
    extent = (0.0, spectrogram.shape[0] * frame_seconds, 0.0, float(spectrogram.shape[1]))
    for axis, (name, values, style) in zip(axes, panels):
        image = axis.imshow(values.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **style)
        axis.set_facecolor("lightgrey")
        axis.set_ylabel(f"{name}\nmel bin")
        figure.colorbar(image, ax=axis)
    axes[-1].set_xlabel("seconds")
    figure.suptitle(plain(title))
    return figure


def masks(
    spectrogram: np.ndarray,
    rows: dict[str, tuple[np.ndarray, np.ndarray]],
    frame_seconds: float = FRAME_SECONDS,
) -> Figure:
    """A log-mel, and below it for each title what is left of it: ASiT's Figure 4.

    spectrogram: float [frames, mel]; rows: title -> (what is seen, float, and what is hidden, bool, of that shape).
    Zeros that hide something are left blank; what else was put there is shown.
    """
    low, high = np.percentile(spectrogram, [1, 99])
    style: dict[str, Any] = {"vmin": low, "vmax": high, "cmap": "magma"}
    figure = new_figure(8, 2 * (1 + len(rows)))
    axes = figure.subplots(1 + len(rows), 1, sharex=True)
    extent = (0.0, spectrogram.shape[0] * frame_seconds, 0.0, float(spectrogram.shape[1]))
    panels = {"clip": spectrogram} | {
        title: np.where(hidden & (seen == 0), np.nan, seen) for title, (seen, hidden) in rows.items()
    }
    for axis, (title, values) in zip(axes, panels.items()):
        axis.imshow(values.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **style)
        axis.set_facecolor("lightgrey")
        axis.set_title(plain(title), fontsize=9)
        axis.set_ylabel("mel bin")
    axes[-1].set_xlabel("seconds")
    return figure


def confusion_matrix(counts: np.ndarray, labels: Sequence[str], title: str = "") -> Figure:
    """counts: int [classes, classes], row = truth, column = prediction. Colours are shares of a row, figures counts."""
    classes = len(labels)
    if counts.shape != (classes, classes):
        raise ValueError(f"{classes} labels for a matrix of {counts.shape}")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.28 * classes + 2.0)
    figure = new_figure(side + 1, side)
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the class")
    names = [plain(label) for label in labels]
    axis.set_xticks(range(classes), names, rotation=90, fontsize=7)
    axis.set_yticks(range(classes), names, fontsize=7)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if classes <= 20:
        for row, column in zip(*(places.tolist() for places in np.nonzero(counts))):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=ink)
    axis.set_title(plain(title))
    return figure


def arms(
    seeds: dict[str, np.ndarray],
    classes: dict[str, np.ndarray],
    labels: Sequence[str],
    metric: Metric,
    note: str = "",
) -> Figure:
    """Models side by side: the metric a seed (dots) and its mean (bar), and what it comes to a class.

    seeds: arm -> float [seeds]; classes: arm -> float [classes]; note: below them.
    """
    figure = new_figure(4 + 0.5 * len(labels), 4)
    left, right = figure.subplots(1, 2, width_ratios=[1, max(1.0, 0.3 * len(labels))])
    width, scale = 0.8 / len(classes), metric.scale
    for place, (arm, values) in enumerate(seeds.items()):
        left.bar(place, scale * values.mean(), color=f"C{place}", alpha=0.6)
        left.scatter(np.full(len(values), place), scale * values, color="black", s=12, zorder=3)
        left.text(place, 0.02, metric.show(values.mean()), ha="center", transform=left.get_xaxis_transform())
        at = np.arange(len(labels)) + (place - (len(classes) - 1) / 2) * width
        right.bar(at, scale * classes[arm], width, label=plain(arm), color=f"C{place}", alpha=0.8)
    left.set_xticks(range(len(seeds)), [plain(arm) for arm in seeds], rotation=30, ha="right")
    left.set_ylabel(plain(metric.title))
    left.set_title("mean and seeds")
    names = [plain(label) for label in labels]
    right.set_xticks(range(len(labels)), names, rotation=90 if len(labels) > 12 else 30, ha="right")
    right.set_title("by class")
    right.legend(loc="lower right")
    for axis in (left, right):
        axis.set_ylim(*((0, 100) if metric.percent else (None, None)))
        axis.grid(axis="y", alpha=0.3)
    if note:
        figure.supxlabel(plain(note), fontsize=8)
    return figure


def curves(series: dict[str, tuple[Sequence[float], Sequence[float]]], title: str = "", across: str = "step") -> Figure:
    """One small plot a metric, `series` being name -> (steps, values), not-a-number left out."""
    rows = max(1, -(-len(series) // 2))
    figure = new_figure(10, 2.5 * rows)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis, (name, (steps, values)) in zip(axes, series.items()):
        axis.plot(np.asarray(steps, float), np.asarray(values, float), linewidth=1)
        axis.set_title(plain(name), fontsize=9)
        axis.set_xlabel(plain(across))
        axis.grid(alpha=0.3)
    for axis in axes[len(series) :]:
        axis.set_visible(False)
    figure.suptitle(plain(title))
    return figure


def probe_curves(
    logged: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    now: Mapping[str, Sequence[tuple[int, float]]],
    title: str = "",
) -> Figure:
    """k-NN beside the linear probe over steps: lines are what a run logged, rings what was scored afterwards.

    Names are those of the metrics (`probe/linear/cls`), values shares of 1. The log-mel's is a dashed line across.
    """
    figure = new_figure(11, 4.5)
    for axis, (how, shown) in zip(figure.subplots(1, 2, sharey=True), (("knn", "k-NN"), ("linear", "linear probe"))):
        names = [name for name in {**logged, **now} if name.startswith(f"probe/{how}/")]
        for number, name in enumerate(sorted(names)):
            steps, values = logged.get(name, ([], []))
            rings = [(step, value) for step, value in now.get(name, []) if step >= 0]
            colour, label = f"C{number}", plain(name.rpartition("/")[2])
            if label == "logmel":
                level = [*values, *(value for _, value in rings)][-1]
                axis.axhline(100 * level, color="grey", linestyle="--", label="mean and deviation of the log-mel")
                continue
            axis.plot(steps, 100 * np.asarray(values, float), color=colour, marker=".", label=label)
            axis.scatter(
                [step for step, _ in rings], [100 * value for _, value in rings], facecolors="none", edgecolors=colour
            )
        axis.set_title(shown)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.axes[0].set_ylabel("accuracy (mAP where clips have several classes), %")
    figure.suptitle(plain(title))
    return figure


def sweep(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    across: str,
    metric: Metric,
    title: str = "",
    native: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Scores over lengths or resolutions, one line a model (ElasticAST's figures).

    lines: model -> (places on the axis, mean scores, their deviations over seeds); native:
    model -> (place, score), a star in its colour: the score on clips as the model takes them itself.
    """
    figure = new_figure(8, 5)
    axis = figure.subplots()
    marks = "os^Dv<>ph"
    for number, (name, (places, means, deviations)) in enumerate(lines.items()):
        x, mean, deviation = (np.asarray(values, float) for values in (places, means, deviations))
        colour = f"C{number % 10}"
        axis.plot(
            x, metric.scale * mean, color=colour, marker=marks[number % len(marks)], markersize=4, label=plain(name)
        )
        if deviation.any():
            low, high = metric.scale * (mean - deviation), metric.scale * (mean + deviation)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        if native and name in native:
            place, score = native[name]
            axis.scatter([place], [metric.scale * score], marker="*", s=140, color=colour, edgecolors="black", zorder=3)
    if native:
        axis.scatter(
            [], [], marker="*", s=140, color="white", edgecolors="black", label="clips as it takes them itself"
        )
    axis.set_xlabel(plain(across))
    axis.set_ylabel(plain(metric.title))
    axis.set_title(plain(title))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def embedding(points: np.ndarray, classes: np.ndarray, labels: Sequence[str], title: str = "") -> Figure:
    """Clips as points in a plane, coloured by class: points [n, 2], classes int [n]. A legend of up to 20 classes."""
    figure = new_figure(8, 6.5)
    axis = figure.subplots()
    import matplotlib

    colours = matplotlib.colormaps["tab10" if len(labels) <= 10 else "tab20" if len(labels) <= 20 else "hsv"]
    for number, label in enumerate(labels):
        here = classes == number
        colour = colours(number) if len(labels) <= 20 else colours(number / len(labels))
        axis.scatter(points[here, 0], points[here, 1], s=14, color=colour, label=plain(label), alpha=0.8, linewidths=0)
    if len(labels) <= 20:
        figure.legend(loc="outside right center", fontsize=8, markerscale=1.5)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(plain(title))
    return figure


def attention(
    spectrogram: np.ndarray, maps: np.ndarray, title: str = "", frame_seconds: float = FRAME_SECONDS
) -> Figure:
    """A log-mel and where each head looks: over time (across) and frequency (upwards), one picture a head.

    spectrogram: float [frames, mel]; maps: float [heads, frames / 16, mel / 16], shares of a head's attention. Each
    head has its own scale of colours, from 0 to its largest share, which stands in its title.
    """
    heads = len(maps)
    columns = 1 if heads < 3 else 3 if heads < 9 else 4
    rows = -(-(1 + heads) // columns)
    figure = new_figure(max(6.0, 4.0 * columns), 1.8 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    extent = (0.0, spectrogram.shape[0] * frame_seconds, 0.0, float(spectrogram.shape[1]))
    style: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": extent, "interpolation": "nearest"}
    low, high = np.percentile(spectrogram, [1, 99])
    axes[0].imshow(spectrogram.T, vmin=low, vmax=high, cmap="magma", **style)
    axes[0].set_title("clip", fontsize=9)
    for head, axis in enumerate(axes[1 : 1 + heads]):
        axis.imshow(maps[head].T, vmin=0.0, cmap="viridis", **style)
        axis.set_title(f"head {head}: up to {maps[head].max():.1%} on a patch", fontsize=9)
    for axis in axes[1 + heads :]:
        axis.set_visible(False)
    for axis in axes[max(0, 1 + heads - columns) : 1 + heads]:
        axis.set_xlabel("seconds")
        axis.xaxis.set_tick_params(labelbottom=True)
    for axis in axes[::columns][: -(-(1 + heads) // columns)]:
        axis.set_ylabel("mel bin")
    figure.suptitle(plain(title))
    return figure
