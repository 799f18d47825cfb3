"""Pictures of a shard set and of a clip."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gamut.audio.logmel import LOW
from gamut.errors import ShardError
from gamut.files import write_bytes
from gamut.numbers import BINS, HOP, RATE, WINDOW
from gamut.shards.batching import ROW
from gamut.shards.index import Index
from gamut.shards.statistics import Statistics
from gamut.track.figures import new_figure, plain

HERTZ = (125, 250, 500, 1000, 2000, 4000, 8000)  # marked on the axis of frequencies
NAMED = 30  # classes whose names fit beside their bars
AUDIO, PADDING, CUT = "#4c72b0", "#d8d8d8", "#c44e52"


def clip_picture(waveform: np.ndarray, log_mel: np.ndarray, title: str) -> Figure:
    """A clip, int16 [samples] at 16 kHz, above its log-mel, float [frames, 128] at 10 ms."""
    seconds = len(waveform) / RATE
    figure = new_figure(10, 5.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    above.plot(np.arange(len(waveform)) / RATE, waveform / 32768, linewidth=0.5, color=AUDIO)
    peak = max(float(np.abs(waveform / 32768).max()) * 1.05, 0.01)
    above.set_ylim(-peak, peak)
    above.set_ylabel("amplitude")
    above.grid(alpha=0.3)
    low, high = np.percentile(log_mel, [1, 99])
    # A frame begins every 10 ms and spans 25; it is plotted around its middle.
    start = (WINDOW - HOP) / 2 / RATE
    extent = (start, start + len(log_mel) * HOP / RATE, -0.5, BINS - 0.5)
    image = below.imshow(
        log_mel.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest", cmap="magma",
        vmin=low, vmax=max(high, low + 1.0),
    )  # fmt: skip
    below.set_yticks([min(mel_bin(hertz), BINS - 0.5) for hertz in HERTZ], [f"{hertz:,}" for hertz in HERTZ])
    below.set_ylim(-0.5, BINS - 0.5)
    below.set_ylabel("frequency (Hz)")
    below.set_xlabel("time (s)")
    below.set_xlim(0, max(seconds, 0.025))
    figure.colorbar(image, ax=below, label="log energy", pad=0.01)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def mel_bin(hertz: float) -> float:
    """Where a frequency lies among the 128 mel bins, whose centres are equally far apart in mel."""
    low, high, here = (1127.0 * np.log(1.0 + f / 700.0) for f in (LOW, RATE / 2, hertz))
    return float((here - low) / ((high - low) / (BINS + 1)) - 1.0)


def plot_set(folder: Path, statistics: Statistics) -> None:
    """Write index/statistics.png of the set in `folder`. Raises ShardError where it cannot be written."""
    picture = io.BytesIO()
    set_picture(statistics, Index.open(folder, tars=False).name).savefig(picture, format="png", dpi=110)
    write_bytes(folder / "index" / "statistics.png", picture.getvalue(), ShardError)


def set_picture(statistics: Statistics, name: str) -> Figure:
    """Lengths, classes and what each way of batching would waste."""
    classes = len(statistics.labels)
    named = 0 < classes <= NAMED
    figure = new_figure(13, max(6.5, 3.2 + 0.19 * classes) if named else 6.5)
    places = figure.subplot_mosaic([["lengths", "classes"], ["batching", "classes"]], width_ratios=(1.25, 1))
    lengths = {name.replace(" s and more", "+ s"): count for name, count in statistics.lengths.items()}
    _bars(places["lengths"], list(lengths), list(lengths.values()))
    places["lengths"].set_title("clips by length", loc="left")
    places["lengths"].tick_params(axis="x", rotation=30)
    _batching(places["batching"], statistics)
    _classes(places["classes"], statistics.labels, named)
    figure.suptitle(
        f"{plain(name)}: {statistics.clips:,} clips, {statistics.hours:.2f} h, median {statistics.median:.2f} s",
        fontsize=13,
    )
    return figure


def _bars(axis: Axes, names: Sequence[str], counts: Sequence[int]) -> None:
    bars = axis.bar(names, counts, color=AUDIO)
    axis.bar_label(bars, [f"{count:,}" if count else "" for count in counts], fontsize=8)
    axis.margins(y=0.15)
    axis.set_ylabel("clips")


def _batching(axis: Axes, statistics: Statistics) -> None:
    ways = [one.way for one in statistics.batching]
    padding = np.array([100 * one.padding for one in statistics.batching])
    cut = np.array([100 * one.cut for one in statistics.batching])
    place = np.arange(len(ways))
    for offset, share, colour, label in (
        (-0.2, padding, PADDING, "tokens that are padding"),
        (0.2, cut, CUT, "audio that is cut away"),
    ):
        bars = axis.barh(place + offset, share, height=0.4, color=colour, label=label, edgecolor="grey", linewidth=0.5)
        axis.bar_label(bars, [f"{value:.2f} %" if value else "" for value in share], fontsize=8, padding=2)
    axis.set_yticks(place, ways)
    axis.invert_yaxis()
    axis.set_xlim(0, max(1.0, 1.18 * max(padding.max(), cut.max())))
    axis.set_xlabel("%")
    axis.set_title(f"what batching wastes (rows of {ROW:,} tokens, 10 ms a frame)", loc="left")
    axis.legend(fontsize=8, loc="lower right")


def _classes(axis: Axes, labels: dict[str, int], named: bool) -> None:
    counts = sorted(labels.items(), key=lambda item: -item[1])
    axis.set_title(f"{len(labels)} classes, most frequent first", loc="left")
    axis.set_xlabel("clips" if named else "rank of the class")
    if not counts:
        axis.text(0.5, 0.5, "no labels", ha="center", va="center", transform=axis.transAxes)
    elif named:
        bars = axis.barh([_short(name) for name, _ in counts], [count for _, count in counts], color=AUDIO)
        axis.bar_label(bars, fontsize=8, padding=2)
        axis.margins(x=0.12)
        axis.set_ylim(max(len(counts), 10) - 0.4, -0.6)
        axis.tick_params(axis="y", labelsize=8)
    else:
        axis.fill_between(np.arange(1, len(counts) + 1), [count for _, count in counts], step="mid", color=AUDIO)
        axis.set_ylabel("clips")
        axis.set_yscale("symlog", linthresh=1)
        axis.set_xlim(1, len(counts))
        axis.grid(alpha=0.3)
        rarest = ", ".join(f"{_short(name)} ({count:,})" for name, count in counts[:-4:-1])
        axis.annotate(f"rarest: {rarest}", (0.02, 0.02), xycoords="axes fraction", fontsize=8, color="white")


def _short(name: str) -> str:
    return plain(name if len(name) <= 28 else f"{name[:27]}…")
