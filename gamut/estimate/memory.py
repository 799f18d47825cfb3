"""What a step holds on the device, by the lives of its tensors."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch

BLOCK = 512  # bytes, to which torch rounds what it allocates on a GPU


class Memory:
    """Bytes on the device by what they are for, now and when they were the most."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.peak = 0
        self.total = 0
        self._kept: dict[int, tuple[weakref.ref, int, str, int]] = {}  # by the storage's address
        self._next = 0

    def see(self, tensor: torch.Tensor, kind: str) -> tuple[int, bool]:
        """(the number of the tensor's piece of memory, whether it is new)."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._kept.get(key)
        if known is not None and known[0]() is not None:
            return known[3], False
        count = -(-storage.nbytes() // self.block) * self.block
        self._next += 1
        number = self._next

        def gone(_: Any, key: int = key, number: int = number) -> None:
            held = self._kept.get(key)
            if held is not None and held[3] == number:
                self._drop(key)

        if known is not None:
            self._drop(key)
        self._kept[key] = weakref.ref(storage, gone), count, kind, number
        self.now[kind] += count
        self._grown(count)
        return number, True

    def begin(self) -> None:
        """Look for the most from now on."""
        self.peak = 0

    def _drop(self, key: int) -> None:
        _, count, kind, _ = self._kept.pop(key)
        self.now[kind] -= count
        self.total -= count

    def call_it(self, tensor: torch.Tensor, kind: str) -> None:
        """What a piece of memory is for, once that is known."""
        key = tensor.untyped_storage()._cdata
        held = self._kept.get(key)
        if held is not None:
            self.now[held[2]] -= held[1]
            self.now[kind] += held[1]
            self._kept[key] = (held[0], held[1], kind, held[3])

    def brief(self, count: float, kind: str) -> None:
        """Memory that a call takes while it runs."""
        count = int(count)
        self.now[kind] += count
        self._grown(count)
        self.now[kind] -= count
        self.total -= count

    def _grown(self, count: int) -> None:
        self.total += count
        if self.total > self.peak:
            self.peak, self.most = self.total, self.now.copy()
