"""Drift between ranks: what all must have alike is hashed, bit for bit, and compared."""

from __future__ import annotations

import torch

from gamut.errors import RunError
from gamut.train.world import World

CHUNK = 1 << 22  # numbers hashed at once, in int64
SHOWN = 5  # names in a message
WORDS = {4: torch.int32, 2: torch.int16, 1: torch.uint8, 8: torch.int64}


@torch.no_grad()
def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """int64 [] on the tensor's device: the sum of its bits as integers, each times an odd number of its place, modulo
    2^64. Any one changed element changes it, whichever bits of it and in whatever type."""
    words = tensor.detach().contiguous().reshape(-1).view(WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].to(torch.int64)
        places = torch.arange(start, start + len(part), dtype=torch.int64, device=tensor.device)
        total += (part * (2 * places + 1)).sum()
    return total


def compare(world: World, tensors: dict[str, torch.Tensor], step: int) -> None:
    """Raise RunError on every rank where a tensor is not the same on all, naming it. All ranks call it together."""
    if world.size == 1 or not tensors:
        return
    mine = torch.stack([fingerprint(tensor).to(world.device) for tensor in tensors.values()]).tolist()
    everyone = world.gather(mine)
    apart = [name for name, *values in zip(tensors, *everyone, strict=True) if len(set(values)) > 1]
    if not apart:
        return
    place = list(tensors).index(apart[0])
    values = [rank[place] for rank in everyone]
    odd = [rank for rank, value in enumerate(values) if values.count(value) <= world.size // 2]
    if len(odd) == world.size:  # two ranks, or no majority: none can be told from the others
        odd = []
    more = f" and {len(apart) - SHOWN} more" if len(apart) > SHOWN else ""
    machines = "leave the machine of the odd rank out" if odd else "try other machines"
    whom = f"ranks {', '.join(map(str, odd))} against the others" if odd else "the ranks"
    raise RunError(
        f"After step {step} the ranks no longer have the same {', '.join(apart[:SHOWN])}{more} ({whom}): a memory, a "
        "network or a program has failed, and what was computed since the last comparison cannot be trusted. Start "
        f"the run again: it goes on from its newest checkpoint; {machines} if it happens again."
    )
