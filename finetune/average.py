"""The mean of a model's weights over the ends of epochs (Izmailov et al. 2018; AST and PSLA score with it)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from gamut.models.strict import copy_into, require_fit

PREFIX = "average."  # of its tensors in a checkpoint's objective.safetensors
COUNT = PREFIX + "epochs"


class WeightAverage:
    """A running mean in fp32 on the CPU, and the number of epochs in it. Empty until the first `add`."""

    def __init__(self) -> None:
        self.epochs = 0
        self.mean: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take in one epoch's weights, by name."""
        self.epochs += 1
        if self.epochs == 1:
            self.mean = {name: value.float().clone() for name, value in weights.items()}
            return
        for name, value in weights.items():
            self.mean[name].lerp_(value.float(), 1.0 / self.epochs)

    @contextlib.contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the mean for its weights, if there is one; afterwards its own, bit for bit."""
        if not self.epochs:
            yield
            return
        state = model.state_dict()
        own = {name: value.clone() for name, value in state.items()}
        try:
            copy_into(state, self.mean)
            yield
        finally:
            copy_into(state, own)

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        if not self.epochs:
            return {}
        return {PREFIX + name: value for name, value in self.mean.items()} | {COUNT: torch.tensor([self.epochs])}

    def load(self, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
        """Restore what `tensors` gave; from a checkpoint without it, an empty mean.

        Raises CheckpointError where a weight of the model is not in it, or of another shape.
        """
        self.epochs = int(tensors[COUNT]) if COUNT in tensors else 0
        self.mean = averaged(tensors)
        if self.epochs:
            hint = "go on with the recipe that wrote it"
            require_fit(model.state_dict(), self.mean, "The checkpoint's mean of weights", hint, spare=True)


def averaged(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean among a checkpoint's tensors, by the names of the model's weights; empty where there is none."""
    if COUNT not in tensors:
        return {}
    mine = [name for name in tensors if name.startswith(PREFIX) and name != COUNT]
    return {name.removeprefix(PREFIX): tensors[name].clone() for name in mine}
