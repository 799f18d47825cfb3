"""One pass of a network over a set: what each process finds, and all of it in the index's order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a process that joins shares has no use for torch
    import torch

    from gamut.data.batch import Hole, PackedBatch

MOST = 1 << 26  # bytes on a device before they are fetched


class Share:
    """What one process has found of its clips: values by name, a row a clip, and the clips that cannot be read."""

    def __init__(self) -> None:
        self.holes: list[Hole] = []
        self.problem = ""  # what went wrong, where something did
        self.left = False  # before all clips were through, since the process is to end
        self._found: dict[str, list[np.ndarray]] = {}
        self._there: dict[str, list[torch.Tensor]] = {}  # not fetched yet
        self._bytes = 0  # of those

    def add(self, batch: PackedBatch, values: dict[str, torch.Tensor]) -> None:
        """Values of a batch, [C, ...] each, on any device, where they stay for a while: nobody waits for a forward."""
        self.holes += batch.holes
        for name, value in ({"row": batch.row} | values).items():
            self._there.setdefault(name, []).append(value)
            self._bytes += value.nbytes
        if self._bytes >= MOST:
            self._fetch()

    def _fetch(self) -> None:
        for name, parts in self._there.items():
            self._found.setdefault(name, []).extend(part.numpy() for part in fetched(parts))
        self._there, self._bytes = {}, 0

    def arrays(self) -> dict[str, np.ndarray]:
        """name -> [clips of this process, ...]; `row` int64 is the clips' in the index. {} where no batch was added."""
        self._fetch()
        return {name: np.concatenate(parts) for name, parts in self._found.items()}


def fetched(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of one device on the CPU, in as many pieces as it likes, the device being waited for once."""
    if parts[0].device.type == "cpu":
        return parts
    import torch

    return [torch.cat(parts).cpu()]


def in_order(shares: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The `arrays` of all processes as one, clips in the order of their rows. {} where no share has a clip."""
    some = [share for share in shares if len(share.get("row", ()))]
    if not some:
        return {}
    joined = {name: np.concatenate([share[name] for share in some]) for name in some[0]}
    order = np.argsort(joined["row"], kind="stable")
    return {name: values[order] for name, values in joined.items()}
