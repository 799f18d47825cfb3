"""Adam's moments on disk, by the names of their parameters: the same files whoever held which part.

engine/moments-00000.safetensors of each rank has, for the parameters (or the parts of parameters) that it owned,
`NAME/exp_avg` and `NAME/exp_avg_sq`, flat, and `NAME/step`. A parameter's parts make it up in the order of the ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save as tensor_bytes

from gamut.errors import CheckpointError
from gamut.train.engine import FOLDER
from gamut.train.storage import Reader, Writer

KINDS = ("exp_avg", "exp_avg_sq")


def write_moments(writer: Writer, rank: int, states: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write this rank's {parameter: {step [], exp_avg, exp_avg_sq, both of any shape}}, without padding."""
    tensors = {}
    for name, state in states.items():
        tensors[f"{name}/step"] = torch.tensor([float(state["step"])])
        for kind in KINDS:
            tensors[f"{name}/{kind}"] = state[kind].detach().reshape(-1).to("cpu", copy=True)
    # With metadata, since safetensors writes a broken header for an empty dictionary (a rank that owns nothing).
    writer.bytes(f"{FOLDER}/moments-{rank:05d}.safetensors", tensor_bytes(tensors, {"rank": str(rank)}))


class Moments:
    """What all ranks of a checkpoint wrote."""

    def __init__(self, ranks: list[dict[str, torch.Tensor]], origin: str) -> None:
        self.ranks = ranks
        self.origin = origin

    def of(self, name: str, numel: int) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """(step, float32 [], {exp_avg: [numel], exp_avg_sq: [numel]}) of a parameter; (None, {}) before any update.

        Raises CheckpointError where its parts do not make it up.
        """
        parts = [rank for rank in self.ranks if f"{name}/step" in rank]
        if not parts:
            return None, {}
        flat: dict[str, Any] = {kind: torch.cat([part[f"{name}/{kind}"] for part in parts]) for kind in KINDS}
        if any(len(value) != numel for value in flat.values()):
            raise CheckpointError(
                f"{self.origin} has {len(flat[KINDS[0]])} numbers of the optimiser's state of {name}, which has "
                f"{numel}: it was written by another model. Take another checkpoint."
            )
        return parts[0][f"{name}/step"][0].clone(), flat


def read_moments(reader: Reader) -> Moments:
    """All ranks' files of a verified checkpoint."""
    names = sorted(name for name in reader.entries if name.startswith(f"{FOLDER}/moments-"))
    return Moments([reader.tensors(name) for name in names], str(reader.root))
