"""The events of a batch are what is heard in its crops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch, Parcel
from gamut.data.events import within
from gamut.plan import plan_epoch
from gamut.shards import Index

from .test_assemble import POLICIES

CLASSES = 3


@pytest.fixture(scope="module")
def strong(corpus) -> Index:
    """The corpus with events in two clips of three."""
    index = copy.copy(corpus.index)
    random = np.random.default_rng(0)
    counts, rows = [], []
    for row in range(len(index)):
        samples = int(index.samples[row])
        # One event of a class at most, as a clip's events of one class never overlap.
        classes = random.permutation(CLASSES)[: random.integers(1, CLASSES + 1)] if row % 3 and samples > 1 else []
        events = [(*sorted(random.choice(samples + 1, 2, replace=False).tolist()), int(one)) for one in classes]
        counts.append(len(events))
        rows += sorted(events)
    found = np.array(rows, np.int64)
    index.event_offset = np.concatenate([[0], np.cumsum(counts)])
    index.event_onset, index.event_end, index.event = found[:, 0], found[:, 1], found[:, 2].astype(np.int32)
    return index


def heard(events: np.ndarray, samples: int) -> np.ndarray:
    """bool [classes, samples]"""
    mask = np.zeros((CLASSES, samples), bool)
    for first, end, label in events:
        mask[label, first:end] = True
    return mask


def of_segment(batch: PackedBatch, segment: int) -> np.ndarray:
    own = slice(int(batch.event_offset[segment]), int(batch.event_offset[segment + 1]))
    return np.stack([batch.event_onset[own], batch.event_end[own], batch.event[own]], 1)


@pytest.mark.parametrize("name", POLICIES)
def test_every_sample_of_a_crop_keeps_what_is_heard_in_it(strong: Index, policy, name: str) -> None:
    epoch = plan_epoch(strong.table(), 5, 1, policy(name))
    packs = list(range(epoch.packs * epoch.steps))
    batch = assemble(strong, epoch, packs)
    assert len(batch.event) > 20
    for clip, row in enumerate(batch.row.tolist()):
        whole = heard(strong.events(row), int(strong.samples[row]))
        for view in range(batch.views):
            start, length = int(epoch.start[clip, view]), int(epoch.length[clip, view])
            wanted = whole[:, np.arange(start, start + length) % whole.shape[1]]
            segment = clip * batch.views + view
            np.testing.assert_array_equal(heard(of_segment(batch, segment), length), wanted)
        own = slice(int(batch.label_offset[clip]), int(batch.label_offset[clip + 1]))
        timed = np.isin(batch.label[own], strong.events(row)[:, 2])
        assert batch.label_timed[own].tolist() == timed.tolist()


def test_a_batch_with_events_travels_in_one_piece(strong: Index, policy) -> None:
    batch = assemble(strong, plan_epoch(strong.table(), 5, 1, policy("two padded crops")), [0, 1])
    other = Parcel.of(batch).open()
    for name in ("label_timed", "event_offset", "event_onset", "event_end", "event"):
        assert getattr(other, name).tolist() == getattr(batch, name).tolist()


def test_no_clip_and_no_event_is_legal(strong: Index, corpus, policy) -> None:
    epoch = plan_epoch(strong.table(), 0, 0, policy("two padded crops"))
    empty = assemble(strong, epoch, [-1])
    assert (empty.event_offset.tolist(), len(empty.event), len(empty.label_timed)) == ([0], 0, 0)
    assert assemble(corpus.index, epoch, [0]).event is None


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=8),
    st.integers(0, 70),
    st.integers(1, 60),
)
def test_events_are_shifted_and_cut(spans: list[tuple[int, int]], first: int, samples: int) -> None:
    events = np.array([(onset, onset + long, n) for n, (onset, long) in enumerate(spans)], np.int64).reshape(-1, 3)
    seen = within(events, first, samples)
    assert ((seen[:, 0] >= 0) & (seen[:, 0] < seen[:, 1]) & (seen[:, 1] <= samples)).all()
    for onset, end, label in events.tolist():
        wanted = set(range(onset, end)) & set(range(first, first + samples))
        found = {first + at for a, b, one in seen.tolist() if one == label for at in range(a, b)}
        assert found == wanted
