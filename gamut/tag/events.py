"""Events with their times, by a classifier of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gamut.data.events import edges
from gamut.evaluate.events import smoothed
from gamut.numbers import RATE
from gamut.recipe.policy import evaluation_policy
from gamut.tag.recording import Sound
from gamut.tag.result import Span, Tagged
from gamut.tag.spectrogram import Spectrograms

THRESHOLD = 0.5  # of a frame's probability, from which on a class is heard in it, where none was chosen


class Events(Spectrograms):
    """A recording's spans are its events, each with one class, from onset to offset, at the thresholds of frames that
    were chosen for its classes, if any; where spans of a length are asked for, tags as of any other model."""

    frame_thresholds: Sequence[float] | None = None

    def tag(
        self,
        recordings: Sequence[Sound],
        every: float | None = None,
        heard: Callable[[float], None] = lambda seconds: None,
    ) -> Iterator[Tagged]:
        """See `Spectrograms.tag`. With `every` None: events, by time. A recording that is longer than the model reads
        is cut, and an event that goes over a cut is one."""
        if every is not None:
            yield from super().tag(recordings, every, heard)
            return
        policy = evaluation_policy(self.recipe)
        hop, pool = policy.hops[0], policy.pools[0]
        for recording in recordings:
            begin, times, rows = 0, [], []
            for waveform in self._cut(recording, self._samples(None)):
                found = self._judge([waveform], True).cpu().numpy()
                ends = edges(len(found), hop, pool, self.recipe.model.stride, len(waveform))
                times.append(begin / RATE + ends[:-1])
                rows.append(found)
                begin += len(waveform)
                heard(len(waveform) / RATE)
            frames = smoothed(np.concatenate(rows), self.recipe.finetune.median_frames)
            limits = THRESHOLD if self.frame_thresholds is None else np.array(self.frame_thresholds)
            events = found_events(frames, np.concatenate([*times, [begin / RATE]]), limits)
            yield Tagged(recording.path, recording.seconds, self.labels, tuple(events))


def found_events(probabilities: np.ndarray, times: np.ndarray, threshold: float | np.ndarray = THRESHOLD) -> list[Span]:
    """Every stretch of frames in which a class has the threshold (of all, or float [classes]), by onset. Its
    probability is the mean of its frames; those of the other classes, of which the span says nothing, are NaN, so that
    none of them is shown.

    Args:
        probabilities: float32 [n, classes]; times: float64 [n + 1], seconds, ascending, where each frame begins, and
            the end of the last.
    """
    found = []
    for label, above in enumerate((probabilities >= threshold).T):
        steps = np.diff(np.concatenate([[0], above, [0]]).astype(np.int8))
        for first, end in zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist()):
            only = np.full(probabilities.shape[1], np.nan, np.float32)
            only[label] = probabilities[first:end, label].mean()
            found.append(Span(round(float(times[first]), 4), round(float(times[end]), 4), only))
    return sorted(found, key=lambda span: (span.start, span.end))
