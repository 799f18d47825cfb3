"""A linear probe on every layer of a frozen encoder (Whisper-AT, Figure 1, below, and Figure 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from gamut.evaluate import usual_metric
from gamut.evaluate.decisions import decided, precision_recall
from gamut.evaluate.probe import exclusive, held_out, linear_probe, score
from gamut.features import FeatureCache

AT_A_TIME = 64  # records


@dataclass(frozen=True)
class Layers:
    """The scores of the probes on one encoder, each a mean over folds."""

    name: str
    metric: str  # accuracy, where clips have one class each; else mAP
    blocks: list[int]  # which block's output each layer is, from 0
    scores: list[float]  # [layers]
    f1: list[list[float]]  # [layers, classes], F1 of each class
    labels: list[str]

    @property
    def best(self) -> np.ndarray:
        """int64 [classes]: the layer with the highest F1, of equal ones the first."""
        return np.asarray(self.f1).argmax(axis=0)

    def content(self) -> dict:
        """As JSON holds it."""
        return asdict(self) | {"best": [self.blocks[layer] for layer in self.best.tolist()]}


def mean_vectors(cache: FeatureCache, rows: np.ndarray) -> np.ndarray:
    """float32 [n, layers, dim]: the features of clips by rows of their index, as means over time.

    Raises FeatureError where the cache does not have one of them.
    """
    vectors = [
        cache.read(rows[first : first + AT_A_TIME]).mean(axis=2, dtype=np.float32)
        for first in range(0, len(rows), AT_A_TIME)
    ]
    return np.concatenate(vectors)


def probe_layers(
    name: str,
    vectors: np.ndarray,
    target: np.ndarray,
    fold: np.ndarray,
    labels: tuple[str, ...],
    blocks: tuple[int, ...],
    told: Callable[[int, float], None] = lambda layer, score: None,
) -> Layers:
    """Probe each layer, a fold at a time: features scaled to mean 0 and deviation 1, then softmax regression.

    vectors: float [n, layers, dim]; target: bool [n, classes]; fold: int [n], the fold in which a clip is scored, -1
    for one that is only trained on. `told(layer, score)` is called as each layer is done.
    """
    one_class = exclusive(target)
    scores, f1 = [], []
    for layer in range(vectors.shape[1]):
        values, by_class = [], []
        for scored in held_out(fold):
            x = vectors[:, layer]
            logits = linear_probe(x[~scored], target[~scored], x[scored])
            values.append(score(target[scored], logits, one_class))
            by_class.append(class_f1(target[scored], logits, one_class))
        scores.append(float(np.mean(values)))
        f1.append(np.mean(by_class, axis=0).tolist())
        told(layer, scores[-1])
    return Layers(name, usual_metric(one_class).name, list(blocks), scores, f1, list(labels))


def class_f1(target: np.ndarray, logits: np.ndarray, one_class: bool) -> np.ndarray:
    """float64 [classes]: F1 of each class, of the best-scored class a clip or of every one at even odds; 0 for one that
    no clip of this fold has."""
    return np.nan_to_num(precision_recall(target, decided(target, logits, one_class, None))[2])
