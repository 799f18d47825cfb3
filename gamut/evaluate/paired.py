"""What one model is better by than another on the clips that both were scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gamut.evaluate import Metric
from gamut.evaluate.bootstrap import ends, paired_bootstrap, resampled
from gamut.evaluate.scores import Scores


@dataclass(frozen=True)
class Difference:
    """Of the first model's score to the second's; low and high: its paired bootstrap 95 % interval over clips, nan
    where there is none."""

    mean: float
    low: float
    high: float
    clips: int  # that both were scored on

    def interval(self, metric: Metric) -> str:
        """`-1.2, +3.4`, in the metric's own way of showing differences; "" where there is none."""
        if np.isnan(self.low):
            return ""
        return ", ".join(metric.show_difference(end).removesuffix(" points") for end in (self.low, self.high))

    def told(self, metric: Metric) -> str:
        """`+1.1 points, paired bootstrap 95 % interval [-1.2, +3.4]`"""
        interval = self.interval(metric)
        return metric.show_difference(self.mean) + (
            f", paired bootstrap 95 % interval [{interval}]" if interval else ""
        )


def difference(one: Sequence[Scores], other: Sequence[Scores], metric: Metric) -> Difference | None:
    """The difference of two models, each scored once or in several rounds or with several seeds; None where they share
    no clip. A clip is known by its key or, where keys repeat, by its id.

    Over rounds and seeds it is the mean: of a clip, where the metric is a mean over clips, else of every two rounds
    that share clips.
    """
    name = "clip" if any(len(np.unique(some.key)) < len(some.key) for some in (*one, *other)) else "key"
    if metric.by_clip:
        return _by_clip(one, other, metric, name)
    means, draws, clips = [], [], set()
    for a, b in ((a, b) for a in one for b in other):
        shared, mine, its = np.intersect1d(getattr(a, name), getattr(b, name), return_indices=True)
        if not len(shared):
            continue
        clips |= {*shared.tolist()}
        pair = [(each.target[rows], each.logits[rows]) for each, rows in ((a, mine), (b, its))]
        means.append(metric.score(*pair[0]) - metric.score(*pair[1]))
        some = [resampled(metric, *each) for each in pair]
        if some[0] is not None and some[1] is not None:
            draws.append(some[0] - some[1])
    if not means:
        return None
    low, high = ends(np.mean(draws, axis=0)) if draws else (np.nan, np.nan)
    return Difference(float(np.mean(means)), low, high, len(clips))


def _by_clip(one: Sequence[Scores], other: Sequence[Scores], metric: Metric, name: str) -> Difference | None:
    assert metric.by_clip is not None
    values = []
    for rounds in (one, other):
        found: dict[str | int, list[float]] = {}
        for scores in rounds:
            for key, value in zip(
                getattr(scores, name).tolist(), metric.by_clip(scores.target, scores.logits).tolist()
            ):
                found.setdefault(key, []).append(value)
        values.append({key: sum(some) / len(some) for key, some in found.items()})
    shared = sorted(values[0].keys() & values[1].keys())
    if not shared:
        return None
    a, b = (np.array([each[key] for key in shared]) for each in values)
    return Difference(*paired_bootstrap(a, b), len(shared))
