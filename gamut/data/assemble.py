"""From planned packs to one packed batch: decode, cut, pad, join."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from gamut.data.batch import Hole, PackedBatch
from gamut.data.reader import Reader
from gamut.errors import AudioError, PlanError
from gamut.plan import Epoch
from gamut.shards import Index

WINDOW = 400  # samples of a log-mel frame (25 ms at 16 kHz): F frames at hop h cover (F - 1) * h + 400


def assemble(source: Index | Reader, epoch: Epoch, packs: Iterable[int]) -> PackedBatch:
    """Join packs of an epoch, given by pack number, into one batch in the order given.

    A negative number, like a pack without clips, adds nothing. Each clip is decoded once for all its views. A clip
    whose bytes are unusable becomes a hole and is left out; that depends on the bytes alone, so every rank and every
    replay leaves out the same ones. Raises ShardError where a shard cannot be read, PlanError where the plan asks for
    samples that a clip does not have.
    """
    reader = source if isinstance(source, Reader) else Reader(source)
    index = reader.index
    rows = [np.arange(epoch.pack_offset[pack], epoch.pack_offset[pack + 1]) for pack in packs if pack >= 0]
    draws = np.concatenate([np.zeros(0, np.int64), *rows])

    # Plain arrays of what is asked for: the epoch's may be memory maps.
    row = np.asarray(epoch.row[draws], dtype=np.int64)
    start = np.asarray(epoch.start[draws], dtype=np.int64)
    length = np.asarray(epoch.length[draws], dtype=np.int64)
    shift = np.asarray(epoch.shift[draws], dtype=np.int64)
    frames = np.asarray(epoch.frames[draws], dtype=np.int64)
    needed = np.where(frames > 0, (frames - 1) * shift + WINDOW, 0)

    waveform = np.empty(int(needed.sum()), np.int16)
    used = 0
    kept: list[int] = []
    holes: list[Hole] = []
    for clip in range(len(draws)):
        try:
            samples = reader.decode(int(row[clip]))
        except AudioError as error:
            holes.append(Hole(int(row[clip]), index.key(int(row[clip])), error.reason))
            continue
        for view in range(epoch.views):
            first, own, size = int(start[clip, view]), int(length[clip, view]), int(needed[clip, view])
            if first < 0 or own > size or first + own > len(samples):
                raise PlanError(
                    f"The plan of epoch {epoch.number} asks for samples {first} to {first + own} of clip "
                    f"{index.key(int(row[clip]))}, padded to {size}, but the clip has {len(samples)} samples. "
                    "The plan belongs to another index: remove the saved plan and start again."
                )
            waveform[used : used + own] = samples[first : first + own]
            waveform[used + own : used + size] = 0
            used += size
        kept.append(clip)

    labels = [np.asarray(index.label[index.label_offset[r] : index.label_offset[r + 1]]) for r in row[kept]]
    return PackedBatch(
        waveform=torch.from_numpy(waveform[:used]),
        offset=_starts(needed[kept].reshape(-1)),
        length=_int64(length[kept].reshape(-1)),
        shift=_int64(shift[kept].reshape(-1)),
        frames=_int64(frames[kept].reshape(-1)),
        clip_id=_int64(np.asarray(epoch.clip_id[draws[kept]]).view(np.int64)),
        draw=_int64(epoch.draw[draws[kept]]),
        row=_int64(row[kept]),
        label_offset=_starts(np.array([len(ids) for ids in labels], np.int64)),
        label=_int64(np.concatenate([np.zeros(0, np.int64), *labels])),
        views=epoch.views,
        epoch=epoch.number,
        sizes=tuple(frames[kept].reshape(-1).tolist()),
        holes=tuple(holes),
    )


def _int64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64))


def _starts(sizes: np.ndarray) -> torch.Tensor:
    """int64 [n + 1]: where each of n pieces starts, and the end of the last."""
    return _int64(np.concatenate([[0], np.cumsum(sizes)]))
