"""The list of holes: each once, however the run restarts; and what is said past the limit."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gamut.data.batch import Hole
from gamut.errors import RunError
from gamut.train.holes import FILE, Holes
from gamut.train.state import State
from gamut.train.world import World

ALONE = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"), threads=1)


def lines(folder: Path) -> list[tuple[int, int, str]]:
    return [(line["step"], line["row"], line["reason"]) for line in map(json.loads, open(folder / FILE))]


def saved(holes: Holes, step: int, epoch: int = 0) -> State:
    """The state of a checkpoint after `step`."""
    holes.sync()
    return State(
        epoch=epoch, step=step, holes=holes.total, holes_this_epoch=holes.this_epoch, hole_reasons=dict(holes.reasons)
    )


def test_what_was_written_behind_the_checkpoint_is_undone_and_comes_again(tmp_path: Path) -> None:
    holes = Holes(tmp_path, 0.5, State(), ALONE)
    holes.add(0, [], 1, 0, 40)
    assert not (tmp_path / FILE).exists()
    holes.add(2, [Hole(7, "dog", "checksum"), Hole(3, "cat", "truncated")], 2, 0, 40)
    state = saved(holes, 3)
    holes.add(1, [Hole(9, "cow", "checksum")], 4, 0, 40)
    assert holes.counts == {"holes": 3, "holes/checksum": 2, "holes/truncated": 1}
    assert lines(tmp_path) == [(2, 3, "truncated"), (2, 7, "checksum"), (4, 9, "checksum")]
    for torn in (b"", b'{"step": 5, "ep', b'{"step": 4, "epoch": 0, "row": 9, "key": "cow", "reason": "checksum"}'):
        with open(tmp_path / FILE, "ab") as file:
            file.write(torn)
        again = Holes(tmp_path, 0.5, state, ALONE)
        assert lines(tmp_path) == [(2, 3, "truncated"), (2, 7, "checksum")]
        assert again.counts == {"holes": 2, "holes/checksum": 1, "holes/truncated": 1}
        again.add(1, [Hole(9, "cow", "checksum")], 4, 0, 40)
        assert lines(tmp_path)[2:] == [(4, 9, "checksum")]
    assert "3 planned clips were left out as unusable (2 checksum, 1 truncated)" in again.said()
    # From the beginning, without a checkpoint: nothing of before counts.
    assert Holes(tmp_path, 0.5, State(), ALONE).said() == ""
    assert lines(tmp_path) == []


def test_the_limit_is_of_an_epoch_and_the_list_survives_a_restart(tmp_path: Path) -> None:
    holes = Holes(tmp_path, 0.1, State(), ALONE)
    for row in range(4):
        holes.add(1, [Hole(row, f"clip{row}", "checksum")], 1 + row, 0, 40)  # four of forty: just allowed
    state = saved(holes, 4)
    with pytest.raises(RunError, match=r"5 of 40 clips.*max_holes=0.1; 4 checksum, 1 length.*clip0 .*clip4 \(length\)"):
        holes.add(1, [Hole(4, "clip4", "length")], 5, 0, 40)
    assert len(lines(tmp_path)) == 5
    resumed = Holes(tmp_path, 0.1, state, ALONE)
    with pytest.raises(RunError, match=rf"5 of 40 .*clip0 \(checksum\), .*{tmp_path / FILE}.*gamut\.shards verify"):
        resumed.add(1, [Hole(4, "clip4", "length")], 5, 0, 40)
    assert len(lines(tmp_path)) == 5
    resumed = Holes(tmp_path, 0.1, replace(state.next_epoch(40), step=4), ALONE)
    resumed.add(4, [Hole(row, f"clip{row}", "checksum") for row in range(4)], 9, 1, 40)  # another epoch, another count
    assert (resumed.total, resumed.this_epoch) == (8, 4)
    with pytest.raises(RunError) as caught:
        resumed.add(30, [Hole(row, f"clip{row}", "checksum") for row in range(30)], 10, 1, 40)
    assert "and 14 more" in str(caught.value)  # twenty are named, all are in the file


def test_many_holes_are_counted_without_being_held(tmp_path: Path) -> None:
    """Memory is that of a step's holes, at a restart that of one line, however many the run has had."""
    holes = Holes(tmp_path, 1.0, State(), ALONE)
    some = [Hole(row, f"clip{row:060d}", "checksum") for row in range(500)]
    holes.add(500, some, 1, 0, 10**6)
    tracemalloc.start()
    try:
        for step in range(2, 22):
            holes.add(500, some, step, 0, 10**6)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        again = Holes(tmp_path, 0.01, saved(holes, 21), ALONE)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / FILE).stat().st_size > 1_000_000
    assert before < 100_000
    assert held - before < 50_000
    assert peak - before < 300_000
    with pytest.raises(RunError, match=r"10501 checksum.*and 10481 more"):
        again.add(1, [Hole(0, "last", "checksum")], 22, 0, 10**6)


def test_a_list_that_cannot_be_kept_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"nonsense\n" + b'{"step": 1}\n')
    with pytest.raises(RunError, match=r"holes\.jsonl is damaged at byte 0"):
        Holes(tmp_path, 0.1, State(), ALONE)
    (tmp_path / FILE).unlink()
    holes = Holes(tmp_path / "gone", 0.1, State(), ALONE)
    with pytest.raises(RunError, match="cannot be written"):
        holes.add(1, [Hole(0, "clip0", "checksum")], 1, 0, 40)
