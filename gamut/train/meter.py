"""Rates and shares of the steps since the last look, from the plan's own numbers."""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import torch

from gamut.numbers import PATCH
from gamut.plan import Epoch


class Meter:
    """clips/s, tokens/s and the padding share of an epoch's steps, which the plan knows: nothing is reduced. And the
    bytes/s that were read for them, and of this rank the CPU time of all its threads, and the most memory so far."""

    def __init__(self, epoch: Epoch, device: torch.device, ranks: int, peak_seconds: float = 0.0) -> None:
        """peak_seconds: what a GPU would need for a token of a step at its peak; 0: not known, and no `mfu`."""
        self.epoch = epoch
        self.device, self.ranks, self.peak_seconds = device, ranks, peak_seconds
        self._clear()

    def facts(self) -> dict[str, float]:
        """What the plan did to its clips, an epoch's or those of a block of one: draws of under 16 frames, and clips
        over `max_frames`."""
        short = np.asarray(self.epoch.length) < self.epoch.needed(slice(None))
        short &= np.asarray(self.epoch.frames) == PATCH
        return {"padded_short": int(short.any(1).sum()), "cut": self.epoch.cut}

    def _clear(self) -> None:
        self._seconds = self._waited = 0.0
        self._steps = self._clips = self._tokens = self._own = self._samples = self._bytes = 0
        self._computed = time.process_time()

    def add(self, step: int, seconds: float, waited: float, read: int = 0) -> None:
        """Count a step of the epoch: its time, of which `waited` (mean over ranks) went by for want of data, and the
        bytes `read` for it from storage, by all ranks."""
        epoch = self.epoch
        packs = epoch.packs_of(step)
        draws = slice(int(epoch.pack_offset[packs.start]), int(epoch.pack_offset[packs.stop]))
        self._clips += draws.stop - draws.start
        self._tokens += int(np.sum(epoch.pack_tokens[packs]))
        self._own += int(np.sum(epoch.length[draws]))
        self._samples += int(np.sum(epoch.needed(draws)))
        self._seconds += seconds
        self._waited += waited
        self._steps += 1
        self._bytes += read

    def read(self) -> dict[str, float]:
        """Means since the last read. padding_share: of the samples the model sees, those that are padding."""
        seconds = max(self._seconds, 1e-9)
        values = {
            "clips_per_second": self._clips / seconds,
            "tokens_per_second": self._tokens / seconds,
            "tokens_per_second_per_gpu": self._tokens / seconds / self.ranks,
            "bytes_per_second": self._bytes / seconds,
            "padding_share": 1.0 - self._own / max(self._samples, 1),
            "wait_share": self._waited / seconds,
            "seconds_per_step": self._seconds / max(self._steps, 1),
            "cpu_seconds_per_step": (time.process_time() - self._computed) / max(self._steps, 1),
            "memory_gb": memory(self.device) / 1e9,
        }
        if self.peak_seconds:
            values["mfu"] = values["tokens_per_second_per_gpu"] * self.peak_seconds
        self._clear()
        return values


def memory(device: torch.device) -> int:
    """Bytes at the most so far: of tensors on the GPU, or of this process. Nothing waits for it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
