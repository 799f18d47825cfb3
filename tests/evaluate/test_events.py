"""Scores of events against sed_eval, against PSDS by its definition, and on inputs whose scores are known."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from gamut.errors import RecipeError
from gamut.evaluate import events as module
from gamut.evaluate.events import (
    Heard,
    Timed,
    choose_frame_thresholds,
    event_f1,
    event_scores,
    require_scorer,
    smoothed,
)
from gamut.evaluate.metrics import MAP
from gamut.evaluate.scores import Scores

FRAME = 0.16
LABELS = ("bell", "dog", "rain")


def clips(seed: int, count: int = 12, noise: float = 0.25) -> list[Heard]:
    """Of 10 s, with one or two events of each of two classes, and frames that are mostly right."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        probability = random.uniform(0, 0.6, (62, 3))
        events = []
        for label in range(2):
            for begin in random.choice([0, 20, 40], int(random.integers(1, 3)), replace=False).tolist():
                onset = begin + int(random.integers(0, 8))
                end = onset + int(random.integers(3, 10))
                events.append((onset * FRAME, end * FRAME, label))
                probability[onset : end + int(random.integers(0, 3)), label] += 0.3
        probability = np.clip(probability + random.normal(scale=noise / 10, size=probability.shape), 0, 1)
        smooth = (probability + np.roll(probability, 1, 0) + np.roll(probability, -1, 0)) / 3
        made.append(Heard(smooth.astype(np.float32), np.arange(63) * FRAME, np.array(sorted(events))))
    return made


def runs(loud: np.ndarray) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int), [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())


def test_f1_is_that_of_sed_eval() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sed_eval.sound_event import EventBasedMetrics, SegmentBasedMetrics

    some = clips(0, 30)
    by_event = EventBasedMetrics(list(LABELS[:2]), t_collar=0.2, percentage_of_length=0.2)
    by_segment = SegmentBasedMetrics(list(LABELS[:2]), time_resolution=1.0)

    def named(events: list, number: int) -> list[dict]:
        return [
            {"file": str(number), "event_onset": a, "event_offset": b, "event_label": LABELS[int(c)]}
            for a, b, c in events
        ]

    for number, clip in enumerate(some):
        found = [
            (clip.edges[a], clip.edges[b], label)
            for label in range(2)
            for a, b in runs(clip.probabilities[:, label] > 0.5)
        ]
        truth, estimate = named(clip.events.tolist(), number), named(found, number)
        by_event.evaluate(truth, estimate)
        by_segment.evaluate(truth, estimate, evaluated_length_seconds=float(clip.edges[-1]))
    scores = event_scores(some, LABELS)
    for name, other in (("event_f1", by_event), ("segment_f1", by_segment)):
        wanted = other.results_class_wise_average_metrics()["f_measure"]["f_measure"]
        assert 0.1 < wanted < 0.95
        assert scores[name] == pytest.approx(wanted, abs=1e-9)
    assert scores["classes_without_events"] == 1


def rate_curves(some: list[Heard], label: int, dtc: float, gtc: float) -> tuple[np.ndarray, np.ndarray]:
    """(false alarms an hour, share of events found) of one class at every threshold, by the definitions."""
    hours = sum(float(clip.edges[-1]) for clip in some) / 3600
    total = sum(int((clip.events[:, 2] == label).sum()) for clip in some)
    false, right = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([clip.probabilities[:, label] for clip in some])):
        alarms = hits = 0
        for clip in some:
            truth = [(a, b) for a, b, c in clip.events.tolist() if c == label]
            found = [(clip.edges[a], clip.edges[b]) for a, b in runs(clip.probabilities[:, label] >= threshold)]
            common = np.array([[max(0.0, min(b, d) - max(a, c)) for c, d in truth] for a, b in found])
            common = common.reshape(len(found), len(truth))
            valid = np.array([common[n].sum() >= dtc * (b - a) - 1e-9 for n, (a, b) in enumerate(found)], bool)
            alarms += int((~valid).sum())
            hits += sum(common[valid, n].sum() >= gtc * (d - c) - 1e-9 for n, (c, d) in enumerate(truth))
        false.append(alarms / hours)
        right.append(hits / total)
    order = np.lexsort((right, false))
    return np.array(false)[order], np.maximum.accumulate(np.array(right)[order])


def test_psds_1_is_its_definition() -> None:
    some = clips(1)
    curves = [rate_curves(some, label, 0.7, 0.7) for label in range(2)]
    steps = np.unique(np.concatenate([[0.0, 100.0], *(false[false < 100] for false, _ in curves)]))
    area = 0.0
    for low, high in itertools.pairwise(steps.tolist()):
        at = [right[np.searchsorted(false, low, side="right") - 1] for false, right in curves]
        area += (high - low) * max(np.mean(at) - np.std(at), 0.0)
    found = event_scores(some, LABELS)["psds1"]
    assert 0.05 < found < 0.95
    assert found == pytest.approx(area / 100, abs=1e-6)


def test_a_class_without_others_is_scored_and_taken_for_none() -> None:
    """Of several classes PSDS 2 has cross triggers; of one alone it is the plain one of its tolerances."""
    some = [Heard(one.probabilities[:, :1], one.edges, one.events[one.events[:, 2] == 0]) for one in clips(3)]
    found = event_scores(some, LABELS[:1])
    assert 0 < found["psds1"] <= found["psds2"] <= 1
    perfect = [Heard(truth_as_frames(one), one.edges, one.events) for one in some]
    assert event_scores(perfect, LABELS[:1])["psds2"] == pytest.approx(1.0)


def truth_as_frames(clip: Heard) -> np.ndarray:
    frames = np.zeros_like(clip.probabilities)
    for onset, offset, _ in clip.events:
        frames[round(onset / FRAME) : round(offset / FRAME)] = 1
    return frames


def test_thresholds_of_frames_are_those_of_the_highest_f1_of_each_class() -> None:
    some = clips(1, 20)
    chosen = choose_frame_thresholds(some, len(LABELS))
    assert np.isnan(chosen[2])  # no clip has an event of it
    best = event_f1(some, chosen)
    assert best > event_f1(some, 0.5) == event_scores(some, LABELS)["event_f1"]
    for label in range(2):  # one class moved alone: never better
        for other in np.linspace(0.05, 0.95, 19):
            moved = chosen.copy()
            moved[label] = other
            assert event_f1(some, moved) <= best + 1e-12
    silent = [Heard(np.zeros_like(clip.probabilities), clip.edges, clip.events) for clip in some]
    assert np.isnan(choose_frame_thresholds(silent, 3)).all()  # no event is found at any
    none = [Heard(clip.probabilities, clip.edges, clip.events[:0]) for clip in some]
    assert np.isnan(choose_frame_thresholds(none, 3)).all()


def test_perfect_frames_score_one_and_late_ones_lose_the_collar() -> None:
    truth = np.array([[1.6, 3.2, 0], [4.8, 8.0, 1]])
    right = np.zeros((62, 3), np.float32)
    right[10:20, 0] = right[30:50, 1] = 0.9
    times = np.arange(63) * FRAME
    perfect = event_scores([Heard(right, times, truth)], LABELS)
    assert perfect == {"psds1": 1, "psds2": 1, "event_f1": 1, "segment_f1": 1, "classes_without_events": 1}
    late = event_scores([Heard(np.roll(right, 2, 0), times, truth)], LABELS)  # by 0.32 s
    assert (late["event_f1"], late["psds1"]) == (0, 1)
    half = right.copy()
    half[:, 1] = 0
    assert event_scores([Heard(half, times, truth)], LABELS)["event_f1"] == pytest.approx(0.5)


def test_events_behind_a_cut_clip_s_end_do_not_count() -> None:
    frames = np.full((10, 3), 0.1, np.float32)
    frames[2:5, 0] = 0.9
    clip = Heard(frames, np.arange(11) * FRAME, np.array([[0.32, 0.8, 0], [1.0, 2.0, 2], [2.0, 3.0, 1]]))
    scores = event_scores([clip], LABELS)
    assert scores["classes_without_events"] == 1  # the dog is behind the end, the rain begins before it
    assert scores["event_f1"] == pytest.approx(0.5)
    assert event_scores([Heard(frames, clip.edges, np.zeros((0, 3)))], LABELS) == {}


def test_frames_are_saved_with_the_scores_of_the_clips(tmp_path: Path) -> None:
    some = clips(2, 3)
    timed = Timed.of(some, LABELS)
    for one, other in zip(timed.clips(), some, strict=True):
        for name in ("probabilities", "edges", "events"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    target = np.eye(3, dtype=np.float32)
    scores = Scores(np.arange(3), target, target - 0.5, timed=timed)
    scores.save(tmp_path / "scores.npz", ["a", "b", "c"], np.arange(3, dtype=np.uint64))
    again = Scores.load(tmp_path / "scores.npz")
    assert again.values(MAP) == scores.values(MAP)
    assert {"mAP", "psds1", "psds2", "event_f1", "segment_f1"} <= scores.values(MAP).keys()


def test_a_missing_scorer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    require_scorer()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install '\.\[events\]'"):
        require_scorer()


@pytest.mark.parametrize("length", [1, 2, 3, 40])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_frames_become_the_median_around_them(length: int, size: int) -> None:
    frames = np.random.default_rng(0).random((length, 4), np.float32)
    found = smoothed(frames, size)
    np.testing.assert_array_equal(found, ndimage.median_filter(frames, (size, 1), mode="nearest"))
    assert found.dtype == np.float32
