"""What the training loop asks of an engine, and which engine a recipe names."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gamut.recipe import schema
from gamut.train.groups import parameter_groups
from gamut.train.objective import Objective
from gamut.train.storage import Writer
from gamut.train.world import World

FOLDER = "engine"  # of a checkpoint: where an engine's own files lie


class Engine(ABC):
    """Forward, backward, look at the gradients, then update or drop: each a call of its own.

    The loop decides whether to update, after `gradient_square`, and on every rank alike. It does not know how weights,
    gradients and the optimiser's state are spread over the ranks.
    """

    optimizer: Any  # whose parameter groups the schedule is written to

    def __init__(self, objective: Objective, recipe: schema.Recipe, world: World) -> None:
        self.world = world
        self.precision = recipe.precision
        self.model = objective.model
        self.groups = parameter_groups(self.model, objective.parameter_groups())
        self.scales = [(group.pop("lr_scale"), group.pop("weight_decay_scale")) for group in self.groups]

    def set_schedule(self, lr: float, weight_decay: float) -> None:
        """Learning rate and weight decay of the coming update, times each group's scale."""
        for group, (lr_scale, decay_scale) in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = lr * lr_scale
            group["weight_decay"] = weight_decay * decay_scale

    @abstractmethod
    def micro_step(self, last: bool) -> contextlib.AbstractContextManager[nn.Module]:
        """The module for one micro-batch's forward and `backward`; `last` of its step or not."""

    @abstractmethod
    def backward(self, share: torch.Tensor) -> None:
        """Backward of this micro-batch's share of the global loss; shares sum over ranks and micro-batches."""

    @abstractmethod
    def gradient_square(self) -> torch.Tensor:
        """This rank's part of the squared global gradient norm, float64 [], before clipping: sum it over the ranks.

        Not finite exactly where a gradient is not finite (or too large for its norm to be a float32).
        """

    @abstractmethod
    def apply(self) -> None:
        """Clip, update, and forget the gradients. The gradients must have been found finite."""

    @abstractmethod
    def drop(self) -> None:
        """Forget the gradients of this step: parameters and optimiser stay bit for bit as they are."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's weights in fp32 on the CPU (under bf16 the optimiser's master copy). Called by all ranks."""

    @abstractmethod
    def save(self, writer: Writer) -> None:
        """Write what `load` needs beside `weights` into the writer's folder `engine`. Called by all ranks."""

    @abstractmethod
    def load(self, path: Path, entries: dict[str, dict[str, Any]], saved_by: int) -> None:
        """Restore a checkpoint folder, whose manifest lists `entries`, that `saved_by` ranks wrote."""

    @abstractmethod
    def layout(self) -> dict[str, Any]:
        """What a checkpoint must agree on before any tensor is copied: engine, stage, precision, names and shapes."""

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the model is a plain module on every rank, with all its weights, to be called by any or none."""
        yield

    def close(self) -> None:
        """Leave the model a plain module with all its weights. Called by all ranks; nothing is trained after it."""
        self.model.zero_grad(set_to_none=True)

    def _layout(self, engine: str, stage: int | None, shapes: dict[str, list[int]]) -> dict[str, Any]:
        return {
            "engine": engine,
            "stage": stage,
            "precision": self.precision,
            "world": self.world.size,
            "parameters": shapes,
        }


def make_engine(objective: Objective, recipe: schema.Recipe, world: World, accumulation: int) -> Engine:
    """The engine that the recipe names, around the objective's model. accumulation: micro-batches a rank and step.

    Raises RecipeError where the engine cannot do what the recipe says.
    """
    if recipe.compute != schema.Compute():
        from gamut.train.blocks import prepare

        copies = [block for module in objective.copies() for block in objective.blocks(module)]
        prepare(objective.blocks(objective.model), copies, recipe.compute, world.device)
    # Imported here: each takes seconds, and a run needs one of them.
    if recipe.engine == "oss":
        from gamut.train.oss import Oss

        return Oss(objective, recipe, world)
    from gamut.train.config import stage_of

    if stage_of(recipe.deepspeed) == 3:
        from gamut.train.zero3 import Zero3

        return Zero3(objective, recipe, world, accumulation)
    from gamut.train.zero import Zero

    return Zero(objective, recipe, world, accumulation)


def named(layout: dict[str, Any]) -> tuple[str, str]:
    """(the engine that a checkpoint's layout is of, the recipe's keys that ask for it), for a message."""
    if layout.get("engine") == "oss":
        return "fairscale's OSS", "engine=oss"
    return f"ZeRO stage {layout['stage']}", f"engine=deepspeed deepspeed.zero_optimization.stage={layout['stage']}"
