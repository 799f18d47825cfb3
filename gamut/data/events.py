"""Events in a batch, a clip's strong labels, shifted and cut as its views are; and the times of a model's columns.

A column of patches is 16 averages of `pool` frames at a hop of `hop` samples, and the next one begins `stride` averages
later. Its place in time is its middle: that of all samples under it.
"""

from __future__ import annotations

import numpy as np
import torch

from gamut.numbers import PATCH, RATE, WINDOW
from gamut.shards import Index


def events_of_views(
    index: Index, rows: np.ndarray, start: np.ndarray, length: np.ndarray, rolled: bool = False
) -> dict[str, torch.Tensor]:
    """The fields of a batch that hold its events; {} for a set without any.

    rows: int64 [C], of the index; start, length: int64 [C, V], the samples that each view reads of its clip. rolled:
    what a view reads past its clip's end is the clip's beginning.
    """
    if getattr(index, "event_offset", None) is None:  # stand-ins for an index know nothing of events
        return {}
    counts, parts, timed = [], [], []
    for row, starts, lengths in zip(rows.tolist(), start.tolist(), length.tolist()):
        events = index.events(row)
        timed.append(np.isin(index.label_ids(row), events[:, 2]))
        if rolled:
            again = np.array([index.samples[row], index.samples[row], 0])
            events = np.concatenate([events, events + again])
        for first, own in zip(starts, lengths):
            view = within(events, first, own)
            counts.append(len(view))
            parts.append(view)
    found = np.concatenate([np.zeros((0, 3), np.int64), *parts])
    return {
        "label_timed": torch.from_numpy(np.concatenate([np.zeros(0, bool), *timed])),
        "event_offset": torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
        "event_onset": torch.from_numpy(found[:, 0].copy()),
        "event_end": torch.from_numpy(found[:, 1].copy()),
        "event": torch.from_numpy(found[:, 2].copy()),
    }


def within(events: np.ndarray, first: int, samples: int) -> np.ndarray:
    """int64 [k, 3]: what of events (first sample, end, class) is within `samples` samples from `first` on, seen from
    there.

    >>> within(np.array([[0, 10, 7], [5, 30, 8]]), 12, 6)
    array([[0, 6, 8]])
    """
    seen = np.clip(events[:, :2] - first, 0, samples)
    there = seen[:, 0] < seen[:, 1]
    return np.concatenate([seen, events[:, 2:]], 1)[there]


def middle(column: int | np.ndarray, hop: int | np.ndarray, pool: int | np.ndarray, stride: int) -> np.ndarray:
    """float64: the middle of a view's columns, by their numbers, in samples of the view."""
    return np.asarray((column * stride * pool + (PATCH * pool - 1) / 2) * hop + WINDOW / 2)


def edges(columns: int, hop: int, pool: int, stride: int, samples: int) -> np.ndarray:
    """float64 [columns + 1], seconds: where each column's part of a clip begins, half-way between middles, and the end
    of the last. The first begins with the clip and the last ends with it: at `samples`, unless the clip goes on by more
    than a patch, and so was cut."""
    ends = middle(np.arange(columns), hop, pool, stride) + stride * pool * hop / 2
    if samples - ends[-1] < PATCH * pool * hop:
        ends[-1] = samples
    return np.concatenate([[0.0], ends]) / RATE


def cells(batch_events: np.ndarray, columns: np.ndarray, hop: np.ndarray, pool: np.ndarray, stride: int) -> np.ndarray:
    """int64 [k, 2]: (column, class) wherever an event is heard; columns are numbered through all segments.

    An event is heard in the columns whose middle it covers, and if it is too short for one, in the nearest.

    Args:
        batch_events: int64 [events, 4], segment, first sample, end, class; columns, hop, pool: int64 [S], of segments.
    """
    segment, onset, end, label = batch_events.T
    step, begin = (stride * pool * hop)[segment], middle(0, hop, pool, stride)[segment]
    first, after = (np.ceil((at - begin) / step).astype(np.int64) for at in (onset, end))
    most = columns[segment] - 1
    near = np.rint(((onset + end) / 2 - begin) / step).astype(np.int64)
    short = after <= first
    first = np.clip(np.where(short, near, first), 0, most)
    last = np.clip(np.where(short, near, after - 1), first, most)
    counts = last - first + 1
    starts = (np.cumsum(columns) - columns)[segment] + first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(starts, counts) + within, np.repeat(label, counts)], 1)
