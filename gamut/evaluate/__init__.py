"""The metrics that models are scored by: the entries of `METRICS`, whose names `finetune.metric` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gamut.registry import Registry

Of = Callable[[np.ndarray, np.ndarray], np.ndarray]
Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # the last one float32 [n, draws]


@dataclass(frozen=True)
class Metric:
    """One number for the quality of a model's scores of all clips, and how to show it.

    Its functions get the targets {0, 1} [n, classes] and the logits float32 [n, classes] of all n clips at once, and
    compute in float64.

    >>> def within_three(target, logits):
    ...     best = np.argsort(-logits, axis=1)[:, :3]
    ...     return float(np.take_along_axis(target, best, 1).any(axis=1).mean())
    >>> METRICS.add("top-3", Metric("top-3", within_three, one_label=True)).show(0.5)
    '50.0%'
    """

    name: str
    score: Callable[[np.ndarray, np.ndarray], float]
    by_class: Of | None = None  # float64 [classes], nan for a class that no clip has
    by_clip: Of | None = None  # float64 [n], where the score is a mean over clips
    weighted: Weighted | None = None  # of one that is none: float64 [draws], each clip counted as often as weights say
    everything: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None  # what to log, including the score
    higher_is_better: bool = True
    percent: bool = True  # whether it is a share of 1, shown in percent
    one_label: bool = False  # whether it needs clips with exactly one label each
    confusion: bool = False  # whether to show a confusion matrix with it; needs one label, too

    def values(self, target: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """The score under the metric's name, and whatever else is logged with it."""
        return self.everything(target, logits) if self.everything else {self.name: self.score(target, logits)}

    def better(self, score: float, than: float | None) -> bool:
        """Whether a score is better than another, or the first one; NaN is only better than none."""
        if than is None or np.isnan(than):
            return than is None or not np.isnan(score)
        return score > than if self.higher_is_better else score < than

    @property
    def has_interval(self) -> bool:
        """Whether it can be bootstrapped over clips (`gamut.evaluate.bootstrap`)."""
        return self.by_clip is not None or self.weighted is not None

    def show(self, score: float) -> str:
        """`85.3%`, or `0.853` if it is not a share of 1."""
        return f"{score:.1%}" if self.percent else f"{score:.4g}"

    def show_difference(self, difference: float) -> str:
        """`+1.2 points`, `-0.034`"""
        return f"{self.scale * difference:+.1f} points" if self.percent else f"{difference:+.4g}"

    @property
    def scale(self) -> float:
        """The factor of scores in tables and figures."""
        return 100.0 if self.percent else 1.0

    @property
    def title(self) -> str:
        """The title of a column or an axis."""
        return f"{self.name}, %" if self.percent else self.name


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "accuracy": "gamut.evaluate.metrics:ACCURACY",
        "mAP": "gamut.evaluate.metrics:MAP",
        "AUC": "gamut.evaluate.metrics:AUC",
        "lwlrap": "gamut.evaluate.metrics:LWLRAP",
        "top-5": "gamut.evaluate.metrics:TOP_5",
    },
)


def usual_metric(one_class: bool) -> Metric:
    """Accuracy where clips have `one_class` each, else the macro mean average precision over classes with a clip."""
    return METRICS["accuracy" if one_class else "mAP"]
