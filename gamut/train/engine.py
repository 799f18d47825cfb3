"""The engine: DeepSpeed around a model, with the boundaries of a step made visible."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from gamut.errors import RecipeError
from gamut.recipe import schema
from gamut.train.config import engine_config, stage_of
from gamut.train.groups import make_optimizer, parameter_groups
from gamut.train.objective import Objective
from gamut.train.world import World, quiet


class Engine:
    """Forward, backward, look at the gradients, then update or drop: each a call of its own.

    DeepSpeed would decide by itself whether to update, and at stage 0 it never looks. Here the loop decides, after
    `gradient_square`, and on every rank alike.
    """

    def __init__(self, objective: Objective, recipe: schema.Recipe, world: World, accumulation: int) -> None:
        elements = sum(parameter.numel() for parameter in objective.model.parameters())
        config = engine_config(recipe, world.size, accumulation, elements)
        try:
            DeepSpeedConfig(copy.deepcopy(config))
        except Exception as error:  # assertions, pydantic's errors and its own
            said = " ".join(str(error).split())
            raise RecipeError(f"DeepSpeed does not accept the recipe's section `deepspeed`: {said}") from error
        self.stage = stage_of(config)
        self.precision = recipe.precision
        self.world = world
        self.accumulation = accumulation
        self.model = objective.model
        groups = parameter_groups(self.model, objective.parameter_groups())
        self.scales = [(group.pop("lr_scale"), group.pop("weight_decay_scale")) for group in groups]
        with quiet():
            self.module, self._optimizer, _, _ = deepspeed.initialize(
                model=self.model,
                optimizer=make_optimizer(groups, recipe.optim),
                config=config,
                dist_init_required=False,
            )
        self.module._copy_recovery_script = lambda save_path: None  # it would put Python scripts into checkpoints

    def set_schedule(self, lr: float, weight_decay: float) -> None:
        """Learning rate and weight decay of the coming update, times each group's scale."""
        for group, (lr_scale, decay_scale) in zip(self._optimizer.param_groups, self.scales, strict=True):
            group["lr"] = lr * lr_scale
            group["weight_decay"] = weight_decay * decay_scale

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[nn.Module]:
        """The module for one micro-batch's forward and `backward`. DeepSpeed reduces in the last one of a step, which
        may have fewer than `accumulation`."""
        self.module.set_gradient_accumulation_boundary(last)
        yield self.module

    def backward(self, share: torch.Tensor) -> None:
        """Backward of this micro-batch's share of the global loss.

        DeepSpeed averages over ranks and micro-steps. The shares are to be summed: they are multiplied by both here.
        """
        self.module.backward(share * (self.world.size * self.accumulation))

    @torch.no_grad()
    def gradient_square(self) -> torch.Tensor:
        """This rank's part of the squared global gradient norm, float64 [], before clipping: sum it over the ranks.

        Not finite exactly where a gradient is not finite (or too large for its norm to be a float32).
        """
        optimizer = self._optimizer
        share = 1.0
        if self.stage == 0:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            share = 1.0 / self.world.size  # every rank has all of them
        elif isinstance(optimizer, BF16_Optimizer):
            gradients = list(optimizer.fp32_groups_gradient_flat_partition)
        else:
            gradients = [g for group in optimizer.averaged_gradients.values() for g in group if g is not None]
        if not gradients:
            return torch.zeros((), dtype=torch.float64, device=self.world.device)
        norms = torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients])
        return norms.double().square().sum() * share

    def apply(self) -> None:
        """Clip, update, and forget the gradients. The gradients must have been found finite."""
        self.module.step()
        assert self.module.was_step_applied(), "DeepSpeed skipped an update whose gradients were finite"

    def drop(self) -> None:
        """Forget the gradients of this step: parameters and optimiser stay bit for bit as they are."""
        optimizer = self._optimizer
        if self.stage == 0:
            self.module.zero_grad()
        elif isinstance(optimizer, BF16_Optimizer):
            optimizer.clear_hp_grads()
            optimizer.clear_lp_grads(set_to_none=True)
        else:  # what DeepSpeed does where it finds an overflow itself (stage_1_and_2.py, step)
            optimizer.micro_step_id = -1
            optimizer.zero_grad(set_to_none=True)
            optimizer._release_preflattened_grad_buffers()
            for group in optimizer.averaged_gradients:
                optimizer.averaged_gradients[group] = None
                optimizer.all_grad_tensors[group] = None

    @torch.no_grad()
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's weights in fp32 on the CPU (under bf16 the optimiser's master copy). Called by all ranks."""
        weights = {}
        for name, value in self.model.state_dict().items():
            weights[name] = value.detach().to("cpu", torch.float32, copy=True) if value.is_floating_point() else value
        if self.precision != "fp32":
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    weights[name] = safe_get_full_fp32_param(parameter).cpu().clone()
        return weights

    def save(self, writer: CheckpointEngine, folder: str, tag: str) -> None:
        """Write optimiser and weights through `writer` as DeepSpeed lays them out, under folder/tag."""
        self.module.checkpoint_engine = writer
        self.module.save_checkpoint(folder, tag=tag, save_latest=False)

    def load(self, reader: CheckpointEngine, folder: str, tag: str) -> None:
        """Restore what `save` wrote, read through `reader`."""
        self.module.checkpoint_engine = reader
        with quiet():
            path, _ = self.module.load_checkpoint(folder, tag=tag, load_lr_scheduler_states=False)
        assert path is not None, f"DeepSpeed found nothing to load in {folder}/{tag}"

    def partition(self) -> tuple[list[int], list[int]]:
        """(numbers in each parameter group, numbers in a rank's part of it); empty at stage 0, which has no parts."""
        if self.stage == 0:
            return [], []
        optimizer = self._optimizer
        if isinstance(optimizer, BF16_Optimizer):
            groups, parts = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
        else:
            groups, parts = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
        return [sum(p.numel() for p in group) for group in groups], [part.numel() for part in parts]

    def layout(self) -> dict[str, Any]:
        """What a checkpoint must agree on before any tensor is copied: stage, precision, world, names and shapes."""
        return {
            "stage": self.stage,
            "precision": self.precision,
            "world": self.world.size,
            "parameters": {name: list(p.shape) for name, p in self.model.named_parameters()},
        }
