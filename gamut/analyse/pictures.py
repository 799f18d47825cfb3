"""The figures of the analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from gamut.analyse.layers import Layers
from gamut.track.figures import new_figure


def by_layer(encoders: Sequence[Layers]) -> Figure:
    """Score of the probe over depth, a line an encoder: Figure 1, below. Depth is relative, since encoders differ."""
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    for one in encoders:
        depth = np.arange(1, len(one.scores) + 1) / len(one.scores)
        axis.plot(depth, [100 * score for score in one.scores], marker="o", markersize=3, label=one.name)
    axis.set_xlabel("depth of the layer, as a share of all layers")
    axis.set_ylabel(f"{encoders[0].metric} of a linear probe, %")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def best_layers(encoders: Sequence[Layers]) -> Figure:
    """For each encoder the number of classes whose F1 is highest at each layer: Figure 3."""
    figure = new_figure(7, 1.0 + 2.2 * len(encoders))
    axes = figure.subplots(len(encoders), 1, squeeze=False)[:, 0]
    for axis, one in zip(axes, encoders):
        counts = np.bincount(one.best, minlength=len(one.blocks))
        axis.bar(np.arange(1, len(counts) + 1), counts)
        axis.set_title(one.name, fontsize=10)
        axis.set_ylabel("classes")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("layer with the class's highest F1")
    return figure


def error_rates(snr: Sequence[float], models: Mapping[str, Sequence[float]], clean: Mapping[str, float]) -> Figure:
    """WER over the signal-to-noise ratio, a line a model, dashed what it is without noise: Figure 1, above."""
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    for name, rates in models.items():
        (line,) = axis.plot(snr, [100 * rate for rate in rates], marker="o", label=name)
        axis.axhline(100 * clean[name], color=line.get_color(), linestyle="--", linewidth=0.8)
    axis.set_xlabel("signal-to-noise ratio, dB (dashed: without noise)")
    axis.set_ylabel("word error rate, %")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def f1_against_errors(f1: np.ndarray, increase: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    """Of each class the F1 of the encoder's last layer against the WER that its sounds add: Figure 2."""
    figure = new_figure(7, 5)
    axis = figure.subplots()
    axis.scatter(100 * increase, f1, s=18)
    for x, y, label in zip(100 * increase, f1, labels):
        axis.annotate(label, (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7)
    axis.set_xlabel("increase of the word error rate, points")
    axis.set_ylabel("F1 of the class")
    axis.set_title(title)
    axis.grid(alpha=0.3)
    return figure
