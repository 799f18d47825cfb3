"""Another number of ranks: the optimiser's state of ZeRO-1 and 2, cut anew.

Each parameter group is one flat vector (weights, and as many of Adam's two moments), padded at its end and cut into
equal parts, one a rank. Joining the parts and cutting them for another world loses nothing. DeepSpeed's own way (its
universal format) writes a second checkpoint and unpickles it unchecked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from gamut.errors import CheckpointError
from gamut.train.storage import Reader

OPTIMISER_FILE = re.compile(r"(?P<start>.*zero_pp_rank_)(?P<rank>\d+)(?P<end>_mp_rank_\d+_optim_states\.pt)")
WEIGHTS, STATE = "single_partition_of_fp32_groups", "base_optimizer_state"


def cut(parts: list[torch.Tensor], elements: int, size: int, rank: int) -> torch.Tensor:
    """Part `rank` of `size` numbers, zero-padded, of the vector of `elements` numbers that `parts` (padded) make up."""
    whole = torch.cat([part.reshape(-1) for part in parts])[:elements]
    part = torch.zeros(size, dtype=whole.dtype)
    mine = whole[rank * size : (rank + 1) * size]
    part[: len(mine)] = mine
    return part


def resplit(states: list[dict[str, Any]], elements: list[int], sizes: list[int], rank: int) -> dict[str, Any]:
    """What rank `rank` of the new world would have saved, from what all ranks of the old one saved.

    elements: numbers in each parameter group; sizes: numbers in a rank's part of each group, in the new world.
    """
    state = dict(states[0])
    state[WEIGHTS] = [
        cut([old[WEIGHTS][group] for old in states], elements[group], sizes[group], rank)
        for group in range(len(elements))
    ]
    adam: dict[int, dict[str, Any]] = {}
    for group, known in states[0][STATE]["state"].items():
        adam[group] = {
            key: cut([old[STATE]["state"][group][key] for old in states], elements[group], sizes[group], rank)
            if torch.is_tensor(value) and value.ndim
            else value
            for key, value in known.items()
        }
    state[STATE] = states[0][STATE] | {"state": adam}
    return state


class ResplitReader(Reader):
    """Reads a checkpoint of another number of ranks as if this world had written it.

    world, rank: the new ones; saved_by: the old number; elements and sizes as for `resplit` (empty at stage 0).
    """

    def __init__(
        self,
        root: Path,
        entries: dict[str, dict[str, Any]],
        *,
        rank: int,
        world: int,
        saved_by: int,
        elements: list[int],
        sizes: list[int],
    ) -> None:
        super().__init__(root, entries)
        self.rank, self.world, self.saved_by = rank, world, saved_by
        self.elements, self.sizes = elements, sizes

    def load(self, path: str, map_location: Any = None) -> Any:
        found = OPTIMISER_FILE.fullmatch(Path(path).name)
        if found is None:
            state = super().load(path, map_location)
            state["dp_world_size"] = self.world
            return state
        if int(found["rank"]) != self.rank:
            raise CheckpointError(f"Rank {self.rank} was asked for the optimiser state of rank {found['rank']}.")
        names = [Path(path).with_name(f"{found['start']}{old}{found['end']}") for old in range(self.saved_by)]
        read = [super(ResplitReader, self).load(str(name), "cpu") for name in names]
        key = "optimizer_state_dict"
        return read[0] | {key: resplit([one[key] for one in read], self.elements, self.sizes, self.rank)}
