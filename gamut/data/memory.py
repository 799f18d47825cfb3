"""Sounds in memory as a packed batch, by the same plan as those of shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch
from gamut.plan import Clips, Policy, plan_evaluation


def packed(waveforms: Sequence[np.ndarray], policy: Policy) -> PackedBatch:
    """One batch of int16 waveforms at 16 kHz, [samples] each, in their order: all packs of the plan joined."""
    table = _Waveforms(waveforms)
    epoch = plan_evaluation(table.clips, policy)
    return assemble(table, epoch, range(epoch.packs * epoch.steps))  # type: ignore[arg-type]


class _Waveforms:
    """What `assemble` asks of a reader and of its index. A clip is a row."""

    def __init__(self, waveforms: Sequence[np.ndarray]) -> None:
        self._waveforms = waveforms
        rows = np.arange(len(waveforms))
        samples = np.array([len(one) for one in waveforms])
        self.clips = Clips(rows, rows.astype(np.uint64), np.zeros_like(rows), samples, 2 * samples)
        self.size = self.clips.size

    @property
    def index(self) -> _Waveforms:
        return self

    def decode(self, row: int) -> np.ndarray:
        return self._waveforms[row]

    def label_ids(self, row: int) -> np.ndarray:
        return np.zeros(0, np.int64)

    def key(self, row: int) -> str:
        return f"span {row}"
