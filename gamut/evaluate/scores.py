"""What a model said of each clip that it was scored on, as one file, and every number that follows from it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gamut.evaluate import Metric
from gamut.evaluate.decisions import BINS, calibration, decided, precision_recall, probabilities, reliability
from gamut.evaluate.events import Timed
from gamut.evaluate.metrics import confusion, d_prime, top_k_accuracy
from gamut.evaluate.ranking import lwlrap, mean_of_known, precision_and_area

TIMED = "timed_"  # prefix of the arrays of `Timed` in a file
NO_KEYS, NO_CLIPS = np.zeros(0, "U1"), np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Scores:
    """One row a clip, in index order."""

    row: np.ndarray  # int64 [n]
    target: np.ndarray  # float32 [n, classes]
    logits: np.ndarray  # float32 [n, classes]
    seconds: float = 0.0  # that this process's log-mels and forwards took
    key: np.ndarray = field(default_factory=lambda: NO_KEYS)  # str [n], once they were saved
    clip: np.ndarray = field(default_factory=lambda: NO_CLIPS)  # uint64 [n], ids; none in files of earlier versions
    timed: Timed | None = None  # of a classifier of frames

    def values(self, metric: Metric) -> dict[str, float]:
        """The score under the metric's name, and what is logged with it. float64, computed once."""
        more = {} if self.timed is None else self.timed.values()
        return {name: float(value) for name, value in (metric.values(self.target, self.logits) | more).items()}

    def confusion(self) -> np.ndarray:
        """int64 [classes, classes]: row truth, column prediction; for classes that exclude each other."""
        return confusion(self.target.argmax(1), self.logits.argmax(1), self.target.shape[1])

    def by_class(self, metric: Metric) -> list[float | None]:
        """The metric of each class, None for one that no clip has; empty where the metric has no such values."""
        if metric.by_class is None:
            return []
        values = metric.by_class(self.target, self.logits)
        return [None if np.isnan(value) else float(value) for value in values]

    def save(self, path: Path, keys: Sequence[str], clips: np.ndarray) -> None:
        """Keys, clip ids (uint64 [n]), targets and logits as an .npz that any tool reads (no pickles)."""
        key = np.array(keys)
        more = {} if self.timed is None else {TIMED + name: value for name, value in vars(self.timed).items()}
        np.savez(path, key=key, clip=np.asarray(clips), row=self.row, target=self.target, logits=self.logits, **more)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as scores:
            clip = scores.get("clip", NO_CLIPS)
            more = {name.removeprefix(TIMED): scores[name] for name in scores.files if name.startswith(TIMED)}
            timed = Timed(**more) if more else None
            return cls(scores["row"], scores["target"], scores["logits"], key=scores["key"], clip=clip, timed=timed)


@dataclass(frozen=True)
class ByClass:
    """Float64 [classes] each; nan where a class has no such number."""

    clips: np.ndarray  # that have the class
    AP: np.ndarray
    AUC: np.ndarray
    d_prime: np.ndarray
    threshold: np.ndarray  # nan where none was chosen, or none is needed
    precision: np.ndarray
    recall: np.ndarray
    F1: np.ndarray
    ECE: np.ndarray  # of the class's probability over all clips

    def csv(self, labels: Sequence[str]) -> str:
        """A line a class below a line of names; a number that there is not is left empty."""
        names = list(self.__dataclass_fields__)
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["label", *names])
        for label, *values in zip(labels, *(getattr(self, name) for name in names), strict=True):
            clips, *rest = values
            lines.writerow([label, int(clips), *("" if math.isnan(value) else repr(float(value)) for value in rest)])
        return text.getvalue()


@dataclass(frozen=True)
class Numbers:
    """Every number of a classifier, as shares of 1, and what each leaves out."""

    means: dict[str, float]  # over the classes that some clip has; lwlrap over labels, top-k and ECE over clips
    left_out: dict[str, int]
    by_class: ByClass


def numbers_of(scores: Scores, exclusive: bool, thresholds: Sequence[float] | None = None) -> Numbers:
    """All numbers of clips with targets and logits.

    exclusive: classes exclude each other: softmax probabilities, and the highest is the decision. Else a sigmoid each,
    and thresholds [classes], which these clips must not have had a part in choosing; None: 0.5.
    """
    target, logits = scores.target.astype(bool), scores.logits
    precision, area = precision_and_area(target, logits)
    chosen = np.full(target.shape[1], np.nan) if thresholds is None or exclusive else np.asarray(thresholds, float)
    exact, recall, f1 = precision_recall(target, decided(target, logits, exclusive, chosen))
    probability, clips = probabilities(logits, exclusive), target.sum(axis=0)
    errors = [reliability(target[:, c], probability[:, c], BINS).error for c in range(len(clips))]
    by_class = ByClass(
        clips.astype(np.float64), precision, area, d_prime(area), chosen, exact, recall, f1, np.array(errors)
    )
    there = clips > 0
    means = {"mAP": precision, "AUC": area, "precision": exact, "recall": recall, "F1": f1}
    found = {name: float(mean_of_known(values[there])) for name, values in means.items()}
    found |= {"d_prime": float(d_prime(found["AUC"])), "lwlrap": lwlrap(target, logits)}
    found["ECE"] = calibration(target, logits, exclusive).error
    bare = ~target.any(axis=1)
    if exclusive:
        label = target.argmax(axis=1)[~bare]
        tops = {"accuracy": 1} | ({"top-5": 5} if len(clips) > 5 else {})
        found |= {name: top_k_accuracy(label, logits[~bare], k) for name, k in tops.items()}
    return Numbers(
        found,
        {
            "classes_without_positives": int((~there).sum()),
            "classes_without_negatives": int((there & (clips == len(target))).sum()),
            "classes_never_taken": int(np.isnan(exact[there]).sum()),
            "clips_without_labels": int(bare.sum()),
        },
        by_class,
    )
