"""Tensors that are copied strictly: every one must be there and fit, or nothing is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from gamut.errors import CheckpointError


def require_fit(
    mine: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    source: str | Path,
    hint: str,
    *,
    prefix: str = "",
    spare: bool = False,
    shape: Callable[[torch.Tensor], torch.Size] = lambda tensor: tensor.shape,
    named: Mapping[str, torch.Tensor] | None = None,
    mine_has: str = "this model's has",
    lacking: str = "",
) -> None:
    """Raises CheckpointError naming the first tensor of `mine` that `theirs` lacks or has in another shape, or one too
    many (`spare`: those may be).

    source: what `theirs` was read from. hint: what to do then. prefix: of `theirs` there. shape: of one of `mine`.
    named: tensors of `theirs` as they were there, where they have been made to fit. mine_has: before the shape of one
    of `mine`. lacking: what to say of a tensor that is not there, in place of `hint`.
    """
    for name, tensor in mine.items():
        if name not in theirs:
            raise CheckpointError(f"{source} has no tensor {prefix}{name}; {lacking or hint}.")
        if theirs[name].shape != shape(tensor):
            there = (named or theirs).get(name, theirs[name])
            raise CheckpointError(
                f"{prefix}{name} in {source} has shape {tuple(there.shape)}, {mine_has} {tuple(shape(tensor))}: {hint}."
            )
    unknown = [] if spare else [name for name in theirs if name not in mine]
    if unknown:
        raise CheckpointError(f"{source} has a tensor {prefix}{unknown[0]} that this model lacks: {hint}.")


@torch.no_grad()
def copy_into(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Copy what fits (`require_fit`); `mine` keep their type and device."""
    for name, tensor in mine.items():
        tensor.copy_(theirs[name])


def take_strictly(
    module: torch.nn.Module,
    theirs: dict[str, torch.Tensor],
    source: str | Path,
    hint: str = "it is not a model of the kind that its config says",
) -> None:
    """Make the tensors the module's own, as `require_fit`. They keep their type and device: move the module
    afterwards."""
    require_fit(module.state_dict(), theirs, source, hint, mine_has="not")
    module.load_state_dict(theirs, assign=True)
