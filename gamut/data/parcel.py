"""A batch on its way from a loader worker to its rank: all its tensors in one piece of memory.

A tensor sent between processes takes a file descriptor for as long as it lives. One piece a batch makes that one
descriptor instead of ten, so the descriptors in use are the batches in flight (tens, where the usual limit is 1,024),
and torch's `file_descriptor` strategy is safe. That one is wanted because its memory has no name: nothing stays in
/dev/shm when processes are killed, while the `file_system` strategy depends on a daemon that may be killed with them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.utils.data import get_worker_info

from gamut.data.batch import PackedBatch

ALIGN = 16  # bytes


def _memory(size: int) -> torch.Tensor:
    """uint8 [size]; in a worker shared from the start, since torch would copy it into shared memory to send it."""
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size, device="cpu"))


@dataclass(frozen=True)
class Parcel:
    """A `PackedBatch` as bytes: `places` says where in `memory` each tensor lies, `rest` holds the other fields."""

    memory: torch.Tensor  # uint8 [bytes]
    places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]
    rest: dict[str, Any]

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
        """The batch, its tensors views of `memory` (pinned where that is)."""
        values = dict(self.rest)
        for name, (at, dtype, shape) in self.places.items():
            count = torch.Size(shape).numel()
            values[name] = self.memory[at : at + count * dtype.itemsize].view(dtype).reshape(shape)
        return PackedBatch(**values)

    def pin_memory(self, device: str | None = None) -> Parcel:
        """The same in pinned memory; the name under which torch's DataLoader looks for it."""
        return Parcel(self.memory.pin_memory(), self.places, self.rest)
