from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gamut.errors import PlanError


def test_columns_have_their_types(make_clips) -> None:
    clips = make_clips(5)
    types = {"row": np.int64, "clip_id": np.uint64, "shard": np.int32, "samples": np.int64, "size": np.int64}
    assert {name: getattr(clips, name).dtype for name in clips.types()} == types
    types |= {"weight": np.float64, "source": np.int32}
    clips = replace(clips, weight=np.ones(5, np.float32), source=np.zeros(5, np.int64))
    assert {name: getattr(clips, name).dtype for name in clips.types()} == types


def test_a_subset_keeps_the_rows_of_the_whole_index(make_clips) -> None:
    clips = make_clips(50)
    rows = np.array([3, 40, 7])
    for which in (rows, [3, 40, 7]):
        chosen = clips.select(which)
        assert chosen.row.tolist() == [3, 40, 7]
        assert chosen.samples.tolist() == clips.samples[rows].tolist()
    mask = clips.samples > 16000
    assert clips.select(mask).row.tolist() == np.flatnonzero(mask).tolist()
    assert len(clips.select(np.zeros(0, np.int64))) == 0


def test_what_is_not_in_the_table_cannot_be_selected(make_clips) -> None:
    clips = make_clips(5)
    for wrong in (np.array([0, 5]), np.array([-1])):
        with pytest.raises(PlanError, match="rows 0 to 4"):
            clips.select(wrong)
    with pytest.raises(PlanError, match="mask of 4"):
        clips.select(np.ones(4, bool))


def test_columns_of_different_lengths_are_refused(make_clips) -> None:
    with pytest.raises(PlanError, match="differ in length"):
        replace(make_clips(5), shard=np.zeros(4))


def test_the_fingerprint_is_of_what_a_plan_reads(make_clips, tmp_path) -> None:
    clips = make_clips(20)
    assert clips.fingerprint() == make_clips(20).fingerprint()
    for name in ("row", "clip_id", "shard", "samples"):
        column = getattr(clips, name).copy()
        column[7] += 1
        assert replace(clips, **{name: column}).fingerprint() != clips.fingerprint()
    assert clips.select(np.arange(20)[::-1]).fingerprint() != clips.fingerprint()
    assert replace(clips, size=clips.size + 1).fingerprint() == clips.fingerprint()
    np.save(tmp_path / "samples.npy", clips.samples)
    mapped = replace(clips, samples=np.load(tmp_path / "samples.npy", mmap_mode="r"))
    assert mapped.fingerprint() == clips.fingerprint()
