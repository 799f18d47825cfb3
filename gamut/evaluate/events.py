"""How well events are found in time: by the public scorer sed_scores_eval (Ebbers et al. 2022), from frames' scores."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gamut.errors import RecipeError, missing

COLLAR = 0.2  # seconds by which an onset may be off; an offset by that, or a fifth of the event if that is more
COLLARS = {"onset_collar": COLLAR, "offset_collar": COLLAR, "offset_collar_rate": 0.2}
SEGMENT = 1.0  # seconds
# DCASE's two scenarios: react fast to what happens; and do not take one class for another.
PSDS1 = {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_ct": 0.0, "alpha_st": 1.0}
PSDS2 = {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5, "alpha_st": 1.0}
ALONE = {"cttc_threshold": None, "alpha_ct": 0.0}  # a class without others is taken for none: the scorer fails there


@dataclass(frozen=True)
class Heard:
    """A clip with known events, and how probable every class is in each of its n frames."""

    probabilities: np.ndarray  # float32 [n, classes]
    edges: np.ndarray  # float64 [n + 1], seconds, ascending: frame k lasts from edges[k] to edges[k + 1]
    events: np.ndarray  # float64 [k, 3]: onset and offset in seconds, class id; those of one class do not touch


@dataclass(frozen=True)
class Timed:
    """Heard clips, one after the other, as arrays that a file can hold."""

    frame_offset: np.ndarray  # int64 [clips + 1]
    probability: np.ndarray  # float32 [frames, classes]
    edge: np.ndarray  # float64 [frames + clips], n + 1 for the n frames of a clip
    event_offset: np.ndarray  # int64 [clips + 1]
    event: np.ndarray  # float64 [events, 3]
    label: np.ndarray  # str [classes]

    @classmethod
    def of(cls, clips: Sequence[Heard], labels: Sequence[str]) -> Timed:
        none = np.zeros((0, len(labels)), np.float32)
        return cls(
            _offsets([len(clip.probabilities) for clip in clips]),
            np.concatenate([none, *(clip.probabilities for clip in clips)]),
            np.concatenate([np.zeros(0), *(clip.edges for clip in clips)]),
            _offsets([len(clip.events) for clip in clips]),
            np.concatenate([np.zeros((0, 3)), *(clip.events for clip in clips)]),
            np.array(labels),
        )

    def clips(self) -> list[Heard]:
        """What it was made of."""
        edge = self.frame_offset + np.arange(len(self.frame_offset))
        spans = np.stack([self.frame_offset, edge, self.event_offset], 1).tolist()
        return [
            Heard(self.probability[a:b], self.edge[c:d], self.event[e:f])
            for (a, c, e), (b, d, f) in itertools.pairwise(spans)
        ]

    def values(self) -> dict[str, float]:
        """Their `event_scores`."""
        return event_scores(self.clips(), self.label.tolist())


def smoothed(probabilities: np.ndarray, frames: int) -> np.ndarray:
    """float32 [n, classes]: of each frame the median of the odd number `frames` around it, where the first and the last
    are repeated beyond the ends."""
    if frames == 1:
        return probabilities
    around = np.pad(probabilities, ((frames // 2, frames // 2), (0, 0)), "edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(around, frames, axis=0), axis=-1).astype(np.float32)


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def require_scorer() -> None:
    """Raises RecipeError where sed_scores_eval is not installed."""
    if importlib.util.find_spec("sed_scores_eval") is None:
        raise RecipeError(f"Events are scored by {missing('sed_scores_eval', 'events')}")


def event_scores(clips: Sequence[Heard], labels: Sequence[str], threshold: float = 0.5) -> dict[str, float]:
    """PSDS 1 and 2 (of all thresholds; Bilen et al. 2020), and at one `threshold` the macro means of F1 by events
    (collar 200 ms) and by segments of a second; in float64, computed once over all clips.

    Classes without an event in these clips are left out, and counted. {} where no clip has an event.
    """
    truth, there = _truths(clips)
    if not there:
        return {}
    with _quiet():
        from sed_scores_eval import intersection_based, segment_based

        scores, names = _tables(clips, there)
        seconds = {str(number): float(clip.edges[-1]) for number, clip in enumerate(clips)}
        by_segment = segment_based.fscore(scores, truth, seconds, threshold, segment_length=SEGMENT)
        found = {
            "psds1": intersection_based.psds(scores, truth, seconds, **PSDS1)[0],
            "psds2": intersection_based.psds(scores, truth, seconds, **(PSDS2 | (ALONE if len(there) == 1 else {})))[0],
            "event_f1": event_f1(clips, threshold),
            "segment_f1": _macro(by_segment[0], names),
            "classes_without_events": len(labels) - len(there),
        }
    return {name: float(value) for name, value in found.items()}


def event_f1(clips: Sequence[Heard], threshold: float | np.ndarray) -> float:
    """The macro mean of F1 by events, of one threshold or of one for each class, float [classes]; nan where no clip has
    an event."""
    truth, there = _truths(clips)
    if not there:
        return math.nan
    with _quiet():
        from sed_scores_eval import collar_based

        scores, names = _tables(clips, there)
        limit = threshold if isinstance(threshold, float) else {name: float(threshold[int(name)]) for name in names}
        return _macro(collar_based.fscore(scores, truth, limit, **COLLARS)[0], names)


def choose_frame_thresholds(clips: Sequence[Heard], classes: int) -> np.ndarray:
    """float64 [classes]: the probability of a frame from which on a class is heard in it, so that the F1 of its events
    is highest, by the scorer. nan for a class that has no event in these clips, or of which none is found at any.

    clips: those that judge nothing afterwards.
    """
    truth, there = _truths(clips)
    chosen = np.full(classes, np.nan)
    if not there:
        return chosen
    with _quiet():
        from sed_scores_eval import collar_based

        scores, names = _tables(clips, there)
        f1, _, _, best, _ = collar_based.best_fscore(scores, truth, **COLLARS)
    for name in names:
        if f1[name] > 0 and math.isfinite(best[name]):
            chosen[int(name)] = best[name]
    return chosen


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of what the scorer imports, and of its divisions by a class without detections."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _macro(by_class: dict[str, float], names: Sequence[str]) -> float:
    """A class that is never detected has an F1 of 0."""
    values = [float(by_class[name]) for name in names]
    return math.fsum(0.0 if math.isnan(value) else value for value in values) / len(values)


def _truths(clips: Sequence[Heard]) -> tuple[dict[str, list], list[int]]:
    """(the events of each clip, by its number; the classes that have one, ascending)"""
    truth = {str(number): _truth(clip) for number, clip in enumerate(clips)}
    return truth, sorted({int(label) for events in truth.values() for _, _, label in events})


def _tables(clips: Sequence[Heard], there: list[int]) -> tuple[dict[str, Any], list[str]]:
    """(the scores of these classes in each clip as the scorer takes them, the classes' names in them)"""
    names = [str(label) for label in there]
    return {
        str(number): _table(clip.probabilities[:, there].astype(np.float64), clip.edges, names)
        for number, clip in enumerate(clips)
    }, names


def _truth(clip: Heard) -> list[tuple[float, float, str]]:
    """The clip's events up to its end; a class is called by its id, since its name may be anything."""
    end = float(clip.edges[-1])
    return [(onset, min(offset, end), str(int(label))) for onset, offset, label in clip.events.tolist() if onset < end]


def _table(scores: np.ndarray, edges: np.ndarray, names: list[str]) -> Any:
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    return _writable()(create_score_dataframe(scores, edges, names))


@functools.cache
def _writable() -> Any:
    """A table whose arrays may be written to: those of pandas 3 may not, which the scorer's compiled parts refuse."""
    import pandas

    class Table(pandas.DataFrame):
        @property
        def _constructor(self) -> type:
            return Table

        def to_numpy(self, *words: Any, **options: Any) -> np.ndarray:
            return super().to_numpy(*words, **options).copy()

    return Table
