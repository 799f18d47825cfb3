"""The labelled clips of a shard set, by the splits that a benchmark scores them in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import AudioError, ShardError
from gamut.numbers import RATE
from gamut.shards import Index
from gamut.shards.read import ShardClips

FOLDS, SPLIT = "fold", "split"
NAMES = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test", "testing", "eval")}


@dataclass(frozen=True, eq=False)
class Labelled:
    """A shard set's clips with labels.

    splits: name -> int64 rows of the index, ascending: `train`, `valid`, `test`, or those of each fold by its number.
    """

    index: Index
    splits: dict[str, np.ndarray]
    folds: bool
    unlabelled: int  # clips of these splits that were left out since they have no label, or none with times
    timed: bool = False  # whether every clip's labels have onset and offset, and are to be found with these

    @property
    def one_label(self) -> bool:
        """Whether every clip has exactly one class."""
        return all(len(self.index.label_ids(row)) == 1 for rows in self.splits.values() for row in rows.tolist())

    def labels(self, row: int) -> list[str]:
        return [self.index.labels[label] for label in self.index.label_ids(row)]

    def events(self, row: int) -> list[dict[str, Any]]:
        """By onset: `label`, and `start` and `end` in milliseconds."""
        return [
            {"label": self.index.labels[label], "start": 1000 * onset / RATE, "end": 1000 * end / RATE}
            for onset, end, label in self.index.events(row).tolist()
        ]

    def name(self, row: int) -> str:
        """Of a clip's file: unlike any other's, without a dot, a slash or a digit at its end."""
        return f"{row:08d}-{re.sub(r'[^A-Za-z0-9_-]', '-', self.index.key(row))}_"

    def waveforms(self, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """(row, int16 [samples] at 16 kHz) of a split, in order. Raises AudioError naming a clip that is damaged."""
        shard = self.index.shard
        for number, some in groupby(self.splits[split].tolist(), key=lambda row: int(shard[row])):
            rows = list(some)
            clips = ShardClips.of(self.index, number, rows)
            with self.index.tars.open(clips.name) as file:
                for clip, row in enumerate(rows):
                    try:
                        yield row, clips.waveform(file, clip)
                    except AudioError as error:
                        raise AudioError(
                            f"The clip {clips.keys[clip]} in {self.index.tars.full(clips.name)} {error}. List "
                            f"everything that is damaged: python -m gamut.shards verify {self.index.folder}",
                            error.reason,
                        ) from error


def read_labelled(folder: Path, column: str = "", timed: bool = False) -> Labelled:
    """The clips of the shard set in `folder` by folds, or by train, validation and test.

    column: which one says so; by default `fold` where the set has it, else `split`. A column whose values are named
    train, validation (valid, val, dev) and test (testing, eval) is one of splits, any other one of folds. timed: only
    clips all of whose labels have times.

    Raises ShardError where the set has no labels, or no times of them, no such column, fewer than three folds, or a
    split without clips.
    """
    index = Index.open(folder)
    if not len(index.label):
        raise ShardError(f"The clips of {folder} have no labels: there is nothing to score.")
    column = column or next((name for name in (FOLDS, SPLIT) if name in index.columns), FOLDS)
    if column not in index.columns:
        there = f"its columns are {', '.join(index.columns)}" if index.columns else "it has none"
        raise ShardError(f"The shards in {folder} have no column {column}; {there}. Say which with --column NAME.")
    values, names = np.asarray(index.columns[column]), index.names.get(column, {})
    if names and {"train", "test"} <= set(names):
        splits = {
            split: np.flatnonzero(np.isin(values, [value for name in known if name in names for value in names[name]]))
            for split, known in NAMES.items()
        }
    else:
        splits = {str(value): np.flatnonzero(values == value) for value in np.unique(values)}
        if len(splits) < 3:
            raise ShardError(
                f"The column {column} of the shards in {folder} has {len(splits)} folds: three are needed, one to "
                "score, one to choose on and one to train on."
            )
    labelled = np.diff(index.label_offset) > 0
    if timed:
        if index.event_offset is None:
            raise ShardError(f"No clip of {folder} has events, labels with onset and offset: leave --events out.")
        for row in np.flatnonzero(labelled).tolist():
            labelled[row] = {*index.events(row)[:, 2].tolist()} == {*index.label_ids(row).tolist()}
    kept = {split: rows[labelled[rows]].astype(np.int64) for split, rows in splits.items()}
    if empty := [split for split, rows in kept.items() if not len(rows)]:
        raise ShardError(
            f"By their column {column} the shards in {folder} have no labelled clip for {empty[0]}: the benchmarks "
            "need clips to train on, to choose on and to score."
        )
    without = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    return Labelled(index, kept, "train" not in kept, without, timed)
