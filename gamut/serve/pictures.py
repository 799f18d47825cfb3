"""A recording to look at: its waveform, its spectrogram, and its tags over time."""

from __future__ import annotations

import io

import numpy as np
import torch
from matplotlib.axes import Axes

from gamut.audio.logmel import log_mel
from gamut.numbers import BINS, HOP, RATE, WINDOW
from gamut.tag.recording import Sound, spans
from gamut.tag.result import Tagged
from gamut.track.figures import new_figure, plain

COLUMNS = 1200  # of the picture, at most about so many
CLASSES = 10
A_PART = 10  # seconds that are read at a time
LONGEST_NAME = 22  # letters


def picture(sound: Sound, tagged: Tagged) -> bytes:
    """A PNG, to be read on a telephone too: narrow, one above the other."""
    low, high, mel = columns(sound)
    rows = strongest(tagged)
    figure = new_figure(4.2, 2.6 + (0.5 + 0.2 * len(rows) if len(rows) else 0))
    heights = [0.8, 1.4] + ([0.2 + 0.2 * len(rows)] if len(rows) else [])
    with_tags = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    wave, spectrum = with_tags[:2]
    times = np.linspace(0, sound.seconds, len(low))
    wave.fill_between(times, low, high, linewidth=0.3, color="#4c72b0")
    peak = max(float(np.abs([low, high]).max()) * 1.05, 0.01)
    wave.set_ylim(-peak, peak)
    wave.set_ylabel("amplitude", fontsize=8)
    least, most = np.percentile(mel, [1, 99])
    extent = (0.0, sound.seconds, -0.5, BINS - 0.5)
    spectrum.imshow(
        mel.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=least, vmax=max(most, least + 1.0)
    )
    spectrum.set_ylabel("mel bin", fontsize=8)
    if len(rows):
        _tags(with_tags[2], tagged, rows)
    with_tags[-1].set_xlabel("seconds", fontsize=8)
    with_tags[-1].set_xlim(0, sound.seconds)
    for axis in with_tags:
        axis.tick_params(labelsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


def strongest(tagged: Tagged) -> list[int]:
    """Ids of the classes that reach the highest probabilities anywhere, the highest first."""
    if not tagged.labels or not tagged.spans:
        return []
    most = np.fmax.reduce([span.probabilities for span in tagged.spans])  # an event says nothing of the other classes
    return [int(one) for one in np.argsort(-most, kind="stable")[:CLASSES] if np.isfinite(most[one])]


def columns(sound: Sound) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a sound of any length: the least and the greatest amplitude, float [n], and the mean log-mel, float [n, 128],
    of stretches of time as long as each other."""
    low, high, mel = [], [], []
    for part in spans(sound, A_PART * RATE, WINDOW):
        waveform = np.pad(part, (0, max(WINDOW - len(part), 0)))
        frames = (len(waveform) - WINDOW) // HOP + 1
        here = min(max(round(COLUMNS * len(part) / sound.samples), 1), frames)
        pieces = np.array_split(waveform / 32768, here)
        low += [float(piece.min()) for piece in pieces]
        high += [float(piece.max()) for piece in pieces]
        one = torch.tensor([len(waveform)])
        bins = log_mel(
            torch.from_numpy(waveform), torch.tensor([0, len(waveform)]), one, torch.tensor([HOP]),
            torch.tensor([frames]), (frames,),
        )  # fmt: skip
        mel += [piece.mean(0) for piece in np.split(bins.numpy(), np.arange(1, here) * frames // here)]
    return np.array(low), np.array(high), np.stack(mel)


def over_time(tagged: Tagged, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, float [n + 1]; probabilities of these classes between them, float [rows, n]): spans may overlap, the
    higher one counts; nan where none says anything."""
    edges = np.unique([time for span in tagged.spans for time in (span.start, span.end)])
    values = np.full((len(rows), len(edges) - 1), np.nan)
    for span in tagged.spans:
        first, end = np.searchsorted(edges, [span.start, span.end])
        values[:, first:end] = np.fmax(values[:, first:end], span.probabilities[rows, None])
    return edges, values


def _tags(axis: Axes, tagged: Tagged, rows: list[int]) -> None:
    edges, values = over_time(tagged, rows)
    axis.pcolormesh(edges, np.arange(len(rows) + 1), values, vmin=0.0, vmax=1.0, cmap="Blues", shading="flat")
    names = [tagged.labels[one] for one in rows]
    short = [plain(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…") for name in names]
    axis.set_yticks(np.arange(len(rows)) + 0.5, short)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
