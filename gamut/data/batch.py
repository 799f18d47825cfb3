"""The packed batch: the only form in which clips reach a model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch.utils.data import get_worker_info

ALIGN = 16  # bytes


@dataclass(frozen=True)
class Hole:
    """A planned clip that is unusable. This depends on its bytes alone, so it is the same on every rank and replay."""

    row: int  # row in the index
    key: str
    reason: str  # checksum | truncated | length | unreadable | empty | ...


@dataclass(frozen=True)
class PackedBatch:
    """m packs joined: C clips with V views each, S = C * V segments, clip-major (segment = clip * V + view).

    `waveform` is one flat buffer; segment s owns samples [offset[s], offset[s + 1]), of which the first length[s] are
    the clip's and the rest are zero padding. It yields exactly frames[s] log-mel frames, each the mean of pool[s] at
    a hop of hop[s]: offset[s + 1] - offset[s] = (frames[s] * pool[s] - 1) * hop[s] + 400. Views of one clip may differ
    in length; the last `local_views` of each are its local crops. A batch of no clips is legal (an empty pack).

    Where the features of clips are cached (a plan of `cached` clips) the payload is `features`, a record a clip, and
    there are no samples; `partner_clip` is the clip of the batch that each is mixed with.

    Fields that a plan does not use are None or empty. With mixup, segment s is mixed with samples [partner_offset[s],
    partner_offset[s + 1]) of `partner_waveform`, at most length[s] of them and none for an unmixed clip. In mixtures
    these are added at a gain, and are a view of their own, too, of `partner_frames[s]` frames at the segment's hop and
    pooling; after the first `partner_length[s]` samples come zeros. `gamut.data.front` makes the log-mel of all this.

    Where clips of the set have events (strong labels), segment s has events [event_offset[s], event_offset[s + 1]),
    shifted and cut with its crop. Those of a mixup partner are not in the batch.
    """

    waveform: torch.Tensor  # int16 [samples], 16 kHz
    offset: torch.Tensor  # int64 [S + 1]
    length: torch.Tensor  # int64 [S], samples that are the clip's own
    hop: torch.Tensor  # int64 [S], in samples
    frames: torch.Tensor  # int64 [S], a multiple of 16
    clip_id: torch.Tensor  # int64 [C], the 64-bit hash read as signed
    draw: torch.Tensor  # int64 [C], which copy of the clip in this epoch
    row: torch.Tensor  # int64 [C], row in the index
    label_offset: torch.Tensor  # int64 [C + 1]
    label: torch.Tensor  # int64 [labels], class ids
    views: int  # V
    epoch: int
    sizes: tuple[int, ...] = ()  # frames as Python numbers, so that no device synchronisation is needed
    holes: tuple[Hole, ...] = field(default=())
    local_views: int = 0
    pack_clips: tuple[int, ...] = ()  # clips of each of the m packs, in order; unusable ones left out
    pool: torch.Tensor | None = None  # int64 [S], frames averaged into one; None: 1
    pools: tuple[int, ...] = ()  # the same as Python numbers
    partner_waveform: torch.Tensor | None = None  # int16 [samples], 16 kHz; None: nothing is mixed in this plan
    partner_offset: torch.Tensor | None = None  # int64 [S + 1]
    partner_weight: torch.Tensor | None = (
        None  # float32 [C], lambda: the clip's own share; 1 without a partner; None: equal power
    )
    partner_row: torch.Tensor | None = None  # int64 [C], row in the index; -1 without a partner
    partner_label_offset: torch.Tensor | None = None  # int64 [C + 1]
    partner_label: torch.Tensor | None = None  # int64 [labels], class ids of the partners
    partner_length: torch.Tensor | None = None  # int64 [S], samples that are the partner's; None: no mixtures
    partner_frames: torch.Tensor | None = None  # int64 [S], a multiple of 16; 0 without a partner
    partner_sizes: tuple[int, ...] = ()  # the same as Python numbers
    partner_gain: torch.Tensor | None = None  # float32 [S], what brings the partner to the clip's power
    label_timed: torch.Tensor | None = None  # bool [labels], whether the clip has events of it; None: no clip has any
    event_offset: torch.Tensor | None = None  # int64 [S + 1]
    event_onset: torch.Tensor | None = None  # int64 [events], first sample of each, from its segment's first on
    event_end: torch.Tensor | None = None  # int64 [events], the sample after its last, at most length[s]
    event: torch.Tensor | None = None  # int64 [events], class ids
    features: torch.Tensor | None = None  # float16 or float32 [C, layers, steps, dim]; None: the payload is `waveform`
    partner_clip: torch.Tensor | None = None  # int64 [C], number of the partner in this batch; -1 without one
    bytes: int = 0  # read from storage for this batch
    partner_holes: tuple[Hole, ...] = field(default=())  # unusable partners, whose clips stay unmixed

    @property
    def clips(self) -> int:
        return len(self.clip_id)

    @property
    def segments(self) -> int:
        return len(self.frames)

    @property
    def mixtures(self) -> tuple[int, ...]:
        """Numbers of the segments that are added up with another clip, which is heard apart, too."""
        return tuple(segment for segment, frames in enumerate(self.partner_sizes) if frames)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device (asynchronous from pinned memory)."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)

    def segment_key(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(clip id, draw, view) of every segment, int64 [S] each: what randomness is keyed by."""
        view = torch.arange(self.views, device=self.clip_id.device).repeat(self.clips)
        return self.clip_id.repeat_interleave(self.views), self.draw.repeat_interleave(self.views), view


@dataclass(frozen=True)
class Parcel:
    """A `PackedBatch` on its way from a loader worker to its rank: all its tensors in one piece of memory.

    A tensor sent between processes uses a file descriptor for as long as it lives. One piece of memory a batch needs
    one descriptor instead of ten, so there are as many as batches in flight (tens; the usual limit is 1,024), and
    torch's `file_descriptor` strategy is safe. Its memory has no name, so nothing stays in /dev/shm when processes are
    killed, while the `file_system` strategy depends on a daemon that may be killed with them.
    """

    memory: torch.Tensor  # uint8 [bytes]
    places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]  # byte in `memory`, type and shape of each tensor
    rest: dict[str, Any]  # the other fields

    @classmethod
    def of(cls, batch: PackedBatch) -> Parcel:
        """Copy a batch's tensors into one new piece of memory."""
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        places, end = {}, 0
        for name, tensor in tensors.items():
            places[name] = (end, tensor.dtype, tuple(tensor.shape))
            end += -(-tensor.nbytes // ALIGN) * ALIGN
        memory = _memory(end)
        for name, tensor in tensors.items():
            at = places[name][0]
            memory[at : at + tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1))
            memory[at + tensor.nbytes : at + -(-tensor.nbytes // ALIGN) * ALIGN] = 0
        return cls(memory, places, {name: value for name, value in values.items() if name not in tensors})

    def open(self) -> PackedBatch:
        """The batch, with tensors that are views of `memory` (pinned if it is)."""
        values = dict(self.rest)
        for name, (at, dtype, shape) in self.places.items():
            count = torch.Size(shape).numel()
            values[name] = self.memory[at : at + count * dtype.itemsize].view(dtype).reshape(shape)
        return PackedBatch(**values)

    def pin_memory(self, device: str | None = None) -> Parcel:
        """A copy in pinned memory; torch's DataLoader calls a method of this name."""
        return Parcel(self.memory.pin_memory(), self.places, self.rest)


def _memory(size: int) -> torch.Tensor:
    """uint8 [size]; in a worker it is shared memory, since torch would copy it there to send it."""
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size, device="cpu"))
