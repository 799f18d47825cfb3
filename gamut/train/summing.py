"""Gradients of ZeRO-1 in bf16, summed over the ranks while the backward goes on.

DeepSpeed sums them in one go once it has ended: its `overlap_comm` does nothing for the BF16_Optimizer that it takes
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import comm

from gamut.train.config import BUCKET


@dataclass
class _Bucket:
    """Neighbours in a parameter group's flat float32 vector of sums."""

    first: int  # the first of its parameters, as the model names them
    missing: int  # gradients that are still to come in this backward
    size: int  # parameters
    sums: torch.Tensor


class Summing:
    """Sends each bucket of sums as soon as its gradients are there, and those of all buckets before it.

    The order of buckets is the same on all ranks, from the model's end to its beginning, in whatever order the
    gradients come: those of a compiled block come all at once, in one that may differ between ranks.
    """

    def __init__(self, module: Any, parameters: list[torch.nn.Parameter]) -> None:
        """module: DeepSpeed's, around a BF16_Optimizer; parameters: the model's, each used in one backward a step."""
        self.module, self.group = module, module.seq_data_parallel_group
        optimizer = module.optimizer
        place = {parameter: number for number, parameter in enumerate(parameters)}
        self._buckets: list[_Bucket] = []
        for flat, group in zip(optimizer.fp32_groups_gradients_flat, optimizer.bf16_groups, strict=True):
            begin = end = 0
            members: list[torch.nn.Parameter] = []
            for parameter in group:
                members.append(parameter)
                end += parameter.numel()
                if end - begin >= BUCKET or parameter is group[-1]:
                    self._add(flat[begin:end], members, place)
                    begin, members = end, []
        self._buckets.sort(key=lambda bucket: -bucket.first)
        self._sent: list[Any] | None = None  # None: this backward is not the step's last
        module.buffered_allreduce_fallback = self.finish

    def _add(self, sums: torch.Tensor, members: list[torch.nn.Parameter], place: dict[torch.nn.Parameter, int]) -> None:
        bucket = _Bucket(min(place[one] for one in members), 0, len(members), sums)
        self._buckets.append(bucket)

        def arrived(parameter: torch.Tensor) -> None:
            if self._sent is not None:
                bucket.missing -= 1
                assert bucket.missing >= 0, "a gradient came twice in one backward"
                self._send(False)

        for parameter in members:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(arrived)  # after DeepSpeed's, which adds it to the sums

    def begin(self, last: bool) -> None:
        """A backward comes; in the `last` of a step the sums are sent."""
        self._sent = [] if last else None
        for bucket in self._buckets:
            bucket.missing = bucket.size

    def _send(self, all_of_them: bool) -> None:
        assert self._sent is not None
        for bucket in self._buckets[len(self._sent) :]:
            if bucket.missing and not all_of_them:
                return
            self._sent.append(comm.all_reduce(bucket.sums, group=self.group, async_op=True))

    def finish(self, grads: None = None, elements_per_buffer: int = 0) -> None:
        """Send the rest, and have what comes next wait for all: the backward has ended. Means, as DeepSpeed's."""
        self._send(True)
        assert self._sent is not None
        for work, bucket in zip(self._sent, self._buckets, strict=True):
            work.wait()
            bucket.sums.mul_(1.0 / comm.get_world_size(self.group))
        self._sent = None
