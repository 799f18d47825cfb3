"""What the training loop asks of an engine, and what its optimiser treats alike."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gamut.recipe import schema
from gamut.train.objective import Objective
from gamut.train.world import World

if TYPE_CHECKING:
    from gamut.train.storage import Writer  # which needs DeepSpeed: an engine of another kind does not


NEVER_SAVED = "this engine only takes steps"


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
        self.groups = parameter_groups(self.model, objective.parameter_groups(), recipe.optim.undecayed)
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
    def weights(self, wanted: bool = True) -> dict[str, torch.Tensor]:
        """Copies of the model's weights in fp32 on the CPU (under bf16 of the optimiser's master copy); {} on a rank
        where they are not wanted. Called by all ranks."""

    @abstractmethod
    def save(self, writer: Writer) -> None:
        """Hand what `load` needs beside `weights` to the writer, for its folder `engine`. Called by all ranks."""

    @abstractmethod
    def load(self, path: Path, entries: dict[str, dict[str, Any]], saved_by: int) -> None:
        """Restore a checkpoint folder, whose manifest lists `entries`, that `saved_by` ranks wrote."""

    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """What a checkpoint must agree on before any tensor is copied: engine, stage, precision, names and shapes."""

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the model is a plain module on every rank, with all its weights, to be called by any or none."""
        yield

    def close(self) -> None:
        """Leave the model a plain module with all its weights. Called by all ranks; nothing is trained after it."""
        self.model.zero_grad(set_to_none=True)

    def _signature(self, engine: str, stage: int | None, shapes: dict[str, list[int]]) -> dict[str, Any]:
        return {
            "engine": engine,
            "stage": stage,
            "precision": self.precision,
            "world": self.world.size,
            "parameters": shapes,
        }


class Unsaved(Engine):
    """An engine that takes steps and no more: an account's, a benchmark's. No run has one, so none is ever saved."""

    def weights(self, wanted: bool = True) -> dict[str, torch.Tensor]:
        raise NotImplementedError(NEVER_SAVED)

    def save(self, writer: Writer) -> None:
        raise NotImplementedError(NEVER_SAVED)

    def load(self, path: Path, entries: dict[str, dict[str, Any]], saved_by: int) -> None:
        raise NotImplementedError(NEVER_SAVED)

    def signature(self) -> dict[str, Any]:
        raise NotImplementedError(NEVER_SAVED)


def is_decayed(name: str, parameter: nn.Parameter, undecayed: str) -> bool:
    """Whether a parameter has weight decay, by `optim.undecayed`.

    vectors: not biases and 1-D parameters (DINO, ASiT); embeddings: not class tokens and positions either (timm,
    AudioMAE); nothing: all have (AST, ElasticAST).
    """
    if undecayed == "nothing":
        return True
    embeds = name.rpartition(".")[2].startswith(("cls_token", "dist_token", "pos_embed"))
    return not (parameter.ndim <= 1 or name.endswith("bias") or (undecayed == "embeddings" and embeds))


def parameter_groups(
    model: nn.Module, own: list[dict[str, Any]] | None, undecayed: str = "vectors"
) -> list[dict[str, Any]]:
    """Groups {params, lr_scale, weight_decay_scale}: the objective's own, or decay and no decay by `is_decayed`.

    Frozen parameters and empty groups are left out.

    Raises ValueError where a trainable parameter is in no group, or in two.
    """
    if own is None:
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (decayed if is_decayed(name, parameter, undecayed) else others).append(parameter)
        own = [{"params": decayed}, {"params": others, "weight_decay_scale": 0.0}]
    groups = []
    for group in own:
        kept = [parameter for parameter in group["params"] if parameter.requires_grad]
        if kept:
            scales = {"lr_scale": 1.0, "weight_decay_scale": 1.0} | {k: v for k, v in group.items() if k != "params"}
            groups.append({"params": kept} | scales)
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for number, name in names.items() if number not in set(seen)]
    if missing or len(set(seen)) != len(seen) or set(seen) - set(names):
        raise ValueError(f"the objective's parameter groups are not a partition of the model's parameters: {missing}")
    return groups


def adam(optim: schema.Optim) -> type[torch.optim.Adam]:
    """Adam, whose weight decay is part of the gradient (AST, ElasticAST), or AdamW (Loshchilov and Hutter)."""
    return torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW


def adam_options(optim: schema.Optim) -> dict[str, Any]:
    """What either is made with; learning rate and weight decay are set before every step."""
    return {"betas": optim.betas, "eps": optim.eps, "weight_decay": 0.0}


def named(signature: dict[str, Any]) -> tuple[str, str]:
    """(the engine that a checkpoint's signature is of, the recipe's keys that ask for it), for a message."""
    if signature.get("engine") == "oss":
        return "fairscale's OSS", "engine=oss"
    return (
        f"ZeRO stage {signature['stage']}",
        f"engine=deepspeed deepspeed.zero_optimization.stage={signature['stage']}",
    )
