"""ZeRO stage 3: weights, gradients and optimiser cut over the ranks, and the modules that follow the model alike."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from gamut.models.find import MODEL
from gamut.recipe import schema
from gamut.train.config import copies_config
from gamut.train.objective import Objective
from gamut.train.partitions import fill, share, whole
from gamut.train.storage import KINDS, Reader, Writer, read_moments, write_moments
from gamut.train.world import World, quiet
from gamut.train.zero import Zero


class Zero3(Zero):
    """A rank holds a part of every parameter; DeepSpeed's hooks put a module's weights together while it runs.

    Checkpoints are ours: weights whole, Adam's moments by parameter, so any number of ranks may read them. DeepSpeed's
    own know one number of ranks, and load `latest` where they are told a tag.
    """

    def __init__(self, objective: Objective, recipe: schema.Recipe, world: World, accumulation: int) -> None:
        super().__init__(objective, recipe, world, accumulation)
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.copies = [self._cut(module) for module in objective.copies()]

    def _cut(self, module: nn.Module) -> DeepSpeedZeRoOffload:
        """Cut a frozen fp32 module as the model is. No weight of it stays gathered between two forwards: what moves
        it reaches the parts alone."""
        with quiet():
            engine, _, _, _ = deepspeed.initialize(
                model=module, config=copies_config(copy.deepcopy(self.config)), dist_init_required=False
            )
        return engine.optimizer

    def _clear(self) -> None:
        # DeepSpeed overwrites a parameter's gradient in the first micro-batch that has one and adds to it in the later
        # ones: where that is not the step's first, it would add to what an earlier step left.
        self.optimizer.grad_partitions_flat_buffer.zero_()

    def apply(self) -> None:
        super().apply()
        self._clear()
        for module in self.copies:
            module.partition_all_parameters()  # a copy that is still gathered would not see its parts move

    def drop(self) -> None:
        optimizer = self.optimizer
        optimizer._pre_step()
        optimizer.zero_grad(set_to_none=True)
        optimizer.averaged_gradients = {}
        self._clear()

    @torch.no_grad()
    def weights(self, wanted: bool = True) -> dict[str, torch.Tensor]:
        parameters = dict(self.model.named_parameters())
        weights = {}
        for name, value in self.model.state_dict().items():
            parameter = parameters.get(name)
            if parameter is not None and parameter.requires_grad:
                full = safe_get_full_fp32_param(parameter)
                if wanted:
                    weights[name] = full.to("cpu", copy=True)
            else:
                full = whole(value if parameter is None else parameter)
                if wanted:
                    weights[name] = full.float() if full.is_floating_point() else full
        return weights

    def _held(self) -> Iterator[tuple[int, Any, slice]]:
        """(sub-group, parameter, where its part lies in the sub-group's flat fp32 vector)."""
        for number, group in enumerate(self.optimizer.fp16_groups):
            start = 0
            for parameter in group:
                size = parameter.ds_tensor.numel()
                yield number, parameter, slice(start, start + size)
                start += size

    def _adam(self, number: int) -> dict[str, Any]:
        return self.optimizer.optimizer.state[self.optimizer.fp32_partitioned_groups_flat[number]]

    def save(self, writer: Writer) -> None:
        states = {}
        for number, parameter, where in self._held():
            adam = self._adam(number)
            if not adam:
                continue  # no update yet
            mine = share(parameter)
            states[self._names[parameter]] = {"step": adam["step"]} | {
                kind: adam[kind][where][: mine.stop - mine.start] for kind in KINDS
            }
        write_moments(writer, self.world.rank, states)

    @torch.no_grad()
    def load(self, path: Path, entries: dict[str, dict[str, Any]], saved_by: int) -> None:
        reader = Reader(path, entries)
        weights, moments = reader.tensors(MODEL), read_moments(reader)
        optimizer = self.optimizer
        optimizer.checkpoint_event_prologue()  # every parameter in parts
        parameters = dict(self.model.named_parameters())
        for name, buffer in self.model.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])
        for name, parameter in parameters.items():
            fill(parameter, weights[name])
        for number, parameter, where in self._held():
            name, mine = self._names[parameter], share(parameter)
            length = mine.stop - mine.start
            flat = optimizer.fp32_partitioned_groups_flat[number][where]
            flat.zero_()
            flat[:length].copy_(weights[name].reshape(-1)[mine])
            step, known = moments.of(name, parameter.ds_numel)
            adam = self._adam(number)
            if step is None:
                adam.clear()
                continue
            adam["step"] = step
            for kind in KINDS:
                adam.setdefault(kind, torch.zeros_like(optimizer.fp32_partitioned_groups_flat[number]))
                adam[kind][where].zero_()
                adam[kind][where][:length].copy_(known[kind][mine])
        optimizer.checkpoint_event_epilogue()

    def _offloads(self) -> list[DeepSpeedZeRoOffload]:
        return [self.optimizer.parameter_offload, *self.copies]

    def _plain(self) -> list[Any]:
        """Take DeepSpeed's hooks off the modules; their parameters, to be gathered."""
        for module in self._offloads():
            module.partition_all_parameters()
            module._remove_module_hooks()
            module.forward_hooks, module.backward_hooks = [], []
        return [parameter for module in self._offloads() for parameter in module.module.parameters()]

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        parameters = self._plain()
        try:
            with GatheredParameters(parameters):
                yield
        finally:
            for module in self._offloads():
                module.setup_zero_stage3_hooks()

    def close(self) -> None:
        super().close()
        parameters = self._plain()
        parameters[0].all_gather(param_list=parameters)
