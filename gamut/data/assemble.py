"""From planned packs to one packed batch: decode, cut, pad and join clips, or read cached features."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from gamut.data.batch import Hole, PackedBatch
from gamut.data.events import events_of_views
from gamut.data.reader import FeatureReader, Reader, Readers, open_reader
from gamut.errors import AudioError, PlanError
from gamut.plan import Epoch
from gamut.plan.crops import samples_needed
from gamut.plan.partners import partner_frames
from gamut.shards import Index


def assemble(source: Index | Reader | Readers | FeatureReader, epoch: Epoch, packs: Iterable[int]) -> PackedBatch:
    """Join packs of an epoch, given by pack number, into one batch in the order given.

    A negative number, like a pack without clips, adds nothing. Each clip is decoded once for all its views. A clip
    whose bytes are unusable becomes a hole and is left out; that depends on the bytes alone, so every rank and every
    replay leaves out the same clips. If a partner is unusable, its clip stays unmixed. Raises ShardError where
    a shard cannot be read, PlanError where the plan asks for samples that a clip does not have, FeatureError where a
    clip is missing or damaged in the cache.
    """
    reader = open_reader(source) if isinstance(source, Index) else source
    rows = [np.arange(epoch.pack_offset[pack], epoch.pack_offset[pack + 1]) for pack in packs if pack >= 0]
    draws = np.concatenate([np.zeros(0, np.int64), *rows])
    row = np.asarray(epoch.row[draws], dtype=np.int64)  # a plain array: the epoch's may be a memory map
    planned = [len(pack) for pack in rows]
    if isinstance(reader, FeatureReader):
        kept, payload = _features(reader, epoch, draws, row, planned)
    else:
        kept, payload = _sounds(reader, epoch, draws, row)

    needed = epoch.needed(draws[kept])
    frames = np.asarray(epoch.frames[draws[kept]], np.int64).reshape(-1)
    label_offset, label = _labels(reader.index, row[kept])
    common = {
        "offset": _starts(needed.reshape(-1)),
        "length": _int64(np.asarray(epoch.length[draws[kept]]).reshape(-1)),
        "hop": _int64(np.asarray(epoch.hop[draws[kept]]).reshape(-1)),
        "frames": _int64(frames),
        "clip_id": _int64(np.asarray(epoch.clip_id[draws[kept]]).view(np.int64)),
        "draw": _int64(epoch.draw[draws[kept]]),
        "row": _int64(row[kept]),
        "label_offset": label_offset,
        "label": label,
        "views": epoch.views,
        "epoch": epoch.number,
        "sizes": tuple(frames.tolist()),
        "local_views": epoch.local_views,
        "pack_clips": _pack_clips(planned, kept),
        **_pools(epoch.pool, draws[kept]),
    }
    if not isinstance(reader, FeatureReader):
        start, length = (np.asarray(part[draws[kept]], np.int64) for part in (epoch.start, epoch.length))
        common |= events_of_views(reader.index, row[kept], start, length, epoch.rolled)
    return PackedBatch(**common | payload)


def _sounds(
    reader: Reader | Readers, epoch: Epoch, draws: np.ndarray, row: np.ndarray
) -> tuple[list[int], dict[str, Any]]:
    """(which of the draws are kept; the fields of a batch that hold their samples and partners)."""
    index = reader.index
    start = np.asarray(epoch.start[draws], dtype=np.int64)
    length = np.asarray(epoch.length[draws], dtype=np.int64)
    needed = epoch.needed(draws)
    partners = _Partners(reader, epoch, draws) if epoch.partner is not None else None

    waveform = np.empty(int(needed.sum()), np.int16)
    used = 0
    kept: list[int] = []
    holes: list[Hole] = []
    for clip in range(len(draws)):
        samples = _decode(reader, int(row[clip]), holes)
        if samples is None:
            continue
        views = []
        for view in range(epoch.views):
            first, own, size = int(start[clip, view]), int(length[clip, view]), int(needed[clip, view])
            if own > size:
                raise _of_another_index(index, epoch, int(row[clip]), first, own, len(samples))
            waveform[used : used + own] = _cut(index, epoch, int(row[clip]), samples, first, own, epoch.rolled)
            waveform[used + own : used + size] = 0
            views.append(waveform[used : used + own])
            used += size
        if partners is not None:
            partners.add(clip, views)
        kept.append(clip)
    read = row[kept] if partners is None else np.concatenate([row[kept], [one for one in partners.rows if one >= 0]])
    payload = {
        "waveform": torch.from_numpy(waveform[:used]),
        "holes": tuple(holes),
        "bytes": int(index.size[read.astype(np.int64)].sum()),
        **(partners.fields() if partners is not None else {}),
    }
    return kept, payload


def _features(
    reader: FeatureReader, epoch: Epoch, draws: np.ndarray, row: np.ndarray, planned: list[int]
) -> tuple[list[int], dict[str, Any]]:
    """`_sounds` for cached features. A partner is a clip of the same pack, so nothing more is read."""
    found = reader.holes(row)
    kept = [clip for clip, hole in enumerate(found) if hole is None]
    features = reader.read(row[kept])
    payload: dict[str, Any] = {
        "waveform": torch.zeros(0, dtype=torch.int16),
        "offset": torch.zeros(len(kept) + 1, dtype=torch.int64),
        "features": torch.from_numpy(features),
        "bytes": len(kept) * reader.cache.info.record_bytes,
        "holes": tuple(hole for hole in found if hole is not None),
    }
    if epoch.partner is None:
        return kept, payload
    assert epoch.partner_weight is not None
    pack = np.repeat(np.arange(len(planned)), planned)
    wanted, weight = np.asarray(epoch.partner[draws], np.int64), np.asarray(epoch.partner_weight[draws], np.float32)
    place = {(int(pack[clip]), int(row[clip])): number for number, clip in reversed(list(enumerate(kept)))}
    partner = [place.get((int(pack[clip]), int(wanted[clip])), -1) for clip in kept]
    lost = [hole for hole in reader.holes(wanted[kept]) if hole is not None]
    mixed = np.array(partner, np.int64) >= 0
    partner_row = np.where(mixed, wanted[kept], -1)
    label_offset, label = _labels(reader.index, partner_row)
    return kept, payload | {
        "partner_clip": _int64(partner),
        "partner_weight": torch.from_numpy(np.where(mixed, weight[kept], 1.0).astype(np.float32)),
        "partner_row": _int64(partner_row),
        "partner_label_offset": label_offset,
        "partner_label": label,
        "partner_holes": tuple(lost),
    }


class _Partners:
    """The partners of a batch, of mixup or in mixtures, clip after clip."""

    def __init__(self, reader: Reader | Readers, epoch: Epoch, draws: np.ndarray) -> None:
        assert epoch.partner is not None
        assert epoch.partner_start is not None
        assert epoch.partner_length is not None
        self.reader = reader
        self.epoch = epoch
        self.row = np.asarray(epoch.partner[draws], np.int64)
        self.apart = epoch.partner_weight is None
        self.weight = None if epoch.partner_weight is None else np.asarray(epoch.partner_weight[draws], np.float32)
        self.start = np.asarray(epoch.partner_start[draws], np.int64)
        self.length = np.asarray(epoch.partner_length[draws], np.int64)
        hop, pool = (np.ones(1) if part is None else part[draws] for part in (epoch.hop, epoch.pool))
        hop, pool = hop.astype(np.int64), pool.astype(np.int64)
        self.frames = partner_frames(self.length, hop, pool)
        self.needed = np.where(self.frames > 0, samples_needed(self.frames, hop, pool), 0)
        self.parts: list[np.ndarray] = []
        self.rows: list[int] = []
        self.weights: list[float] = []
        self.heard: list[np.ndarray] = []  # int64 [2, V], samples and frames of the partners' own views
        self.gains: list[float] = []
        self.holes: list[Hole] = []

    def add(self, clip: int, views: list[np.ndarray]) -> None:
        """Decode and cut the partner of a clip with these views, which stays unmixed if that is unusable."""
        row = int(self.row[clip])
        samples = _decode(self.reader, row, self.holes) if row >= 0 else None
        parts = [np.zeros(0, np.int16)] * self.epoch.views
        if samples is not None:
            index, epoch = self.reader.index, self.epoch
            spans = zip(self.start[clip].tolist(), self.length[clip].tolist())
            parts = [_cut(index, epoch, row, samples, first, own) for first, own in spans]
        if self.apart:
            there = samples is not None
            self.heard.append(np.stack([self.length[clip], self.frames[clip]]) * there)
            self.gains += [equal_power(view, part) for view, part in zip(views, parts)]
            parts = [np.pad(part, (0, size - len(part))) for part, size in zip(parts, self.needed[clip] * there)]
        self.parts += parts
        self.rows.append(row if samples is not None else -1)
        self.weights.append(float(self.weight[clip]) if samples is not None and self.weight is not None else 1.0)

    def fields(self) -> dict:
        row = np.array(self.rows, np.int64)
        label_offset, label = _labels(self.reader.index, row)
        return {
            "partner_waveform": torch.from_numpy(np.concatenate([np.zeros(0, np.int16), *self.parts])),
            "partner_offset": _starts(np.array([len(part) for part in self.parts], np.int64)),
            **(self._apart() if self.apart else {"partner_weight": torch.tensor(self.weights, dtype=torch.float32)}),
            "partner_row": _int64(row),
            "partner_label_offset": label_offset,
            "partner_label": label,
            "partner_holes": tuple(self.holes),
        }

    def _apart(self) -> dict:
        length, frames = np.concatenate([np.zeros((2, 0), np.int64), *self.heard], axis=1)
        return {
            "partner_length": _int64(length),
            "partner_frames": _int64(frames),
            "partner_sizes": tuple(frames.tolist()),
            "partner_gain": torch.tensor(self.gains, dtype=torch.float32),
        }


def equal_power(own: np.ndarray, other: np.ndarray) -> float:
    """What `other` (int16) is multiplied with to have the power of `own`, each free of its mean: within 20 dB, since
    what is barely there is noise; 1 where either is silent."""
    power = [float(part.astype(np.float64).var()) if len(part) else 0.0 for part in (own, other)]
    return math.sqrt(min(max(power[0] / power[1], 0.01), 100.0)) if min(power) > 0 else 1.0


def _decode(reader: Reader | Readers, row: int, holes: list[Hole]) -> np.ndarray | None:
    """int16 samples of a clip, or None and one more hole."""
    try:
        return reader.decode(row)
    except AudioError as error:
        holes.append(Hole(row, reader.index.key(row), error.reason))
        return None


def _cut(
    index: Index, epoch: Epoch, row: int, samples: np.ndarray, first: int, own: int, rolled: bool = False
) -> np.ndarray:
    """`own` samples from `first` on; a rolled waveform continues at its beginning."""
    end = first + own
    if first < 0 or own > len(samples) or (end > len(samples) and not (rolled and first < len(samples))):
        raise _of_another_index(index, epoch, row, first, own, len(samples))
    if end <= len(samples):
        return samples[first:end]
    return np.concatenate([samples[first:], samples[: end - len(samples)]])


def _of_another_index(index: Index, epoch: Epoch, row: int, first: int, own: int, there: int) -> PlanError:
    return PlanError(
        f"The plan of epoch {epoch.number} asks for samples {first} to {first + own} of clip {index.key(row)}, but the "
        f"clip has {there} samples. The plan was made from another index: remove the saved plan and start again."
    )


def _pack_clips(planned: list[int], kept: list[int]) -> tuple[int, ...]:
    """How many of each pack's clips were kept; `kept` are their numbers among all that were planned, ascending."""
    ends = np.searchsorted(kept, np.cumsum(planned))
    return tuple(np.diff(ends, prepend=0).tolist())


def _pools(pool: np.ndarray | None, draws: np.ndarray) -> dict:
    """The plan's poolings as a batch has them: a tensor [S], and the same as Python numbers."""
    if pool is None:
        return {}
    counts = _int64(np.asarray(pool[draws]).reshape(-1))
    return {"pool": counts, "pools": tuple(counts.tolist())}


def _labels(index: Index, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(offset [n + 1], class ids) of clips; a row of -1 has none."""
    none = np.zeros(0, np.int64)
    labels = [np.asarray(index.label_ids(int(row))) if row >= 0 else none for row in rows]
    return _starts(np.array([len(ids) for ids in labels], np.int64)), _int64(np.concatenate([none, *labels]))


def _int64(array: np.ndarray | list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64))


def _starts(sizes: np.ndarray) -> torch.Tensor:
    """int64 [n + 1]: where each of n pieces starts, and the end of the last."""
    return _int64(np.concatenate([[0], np.cumsum(sizes)]))
