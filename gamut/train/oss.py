"""fairscale's OSS as an engine: DDP averages gradients, each rank updates the parameters whose Adam state it owns.

The second implementation of the same update, independent of DeepSpeed: what both compute is likely right. Weights are
fp32; with `precision: bf16` the objective's forward runs under autocast. fairscale's own ShardedDDP is not used: on
torch 2 it reduces nothing from the second step on, since zero_grad takes the gradients that it holds on to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fairscale.optim.oss import OSS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gamut.models.find import MODEL
from gamut.recipe import schema
from gamut.train.engine import Engine, adam, adam_options
from gamut.train.objective import Objective
from gamut.train.partitions import shapes
from gamut.train.storage import Reader, Writer, read_moments, write_moments
from gamut.train.world import World

TINY = 1e-6


class Oss(Engine):
    """Every rank has all weights and gradients, and the optimiser's state of its share of the parameters."""

    def __init__(self, objective: Objective, recipe: schema.Recipe, world: World) -> None:
        super().__init__(objective, recipe, world)
        self.clip, self.clip_each = recipe.optim.clip, recipe.optim.clip_each
        self.optimizer = OSS(self.groups, optim=adam(recipe.optim), lr=0.0, **adam_options(recipe.optim))
        devices = [world.device] if world.device.type == "cuda" else None
        self.module = DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=False)
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[nn.Module]:
        with contextlib.nullcontext() if last else self.module.no_sync():
            yield self.module

    def backward(self, share: torch.Tensor) -> None:
        # DDP averages over ranks, and adds micro-steps up: the shares are to be summed over both.
        (share * self.world.size).backward()

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    @torch.no_grad()
    def _square(self) -> torch.Tensor:
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in self._gradients()]
        if not norms:
            return torch.zeros((), dtype=torch.float64, device=self.world.device)
        return torch.stack(norms).square().sum()

    def gradient_square(self) -> torch.Tensor:
        return self._square() / self.world.size  # every rank has all gradients

    @torch.no_grad()
    def apply(self) -> None:
        if self.clip:
            # Not OSS's clip_grad_norm: it remembers the parameters that had gradients when it was first called.
            clip(self._gradients(), self.clip, self.clip_each)
        self.optimizer.step()
        self.drop()

    def drop(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def weights(self, wanted: bool = True) -> dict[str, torch.Tensor]:
        if not wanted:
            return {}  # every rank has all of them
        return {
            name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for name, value in self.model.state_dict().items()
        }

    def save(self, writer: Writer) -> None:
        state = self.optimizer.optim.state  # of the parameters that this rank owns
        write_moments(writer, self.world.rank, {self._names[parameter]: known for parameter, known in state.items()})

    @torch.no_grad()
    def load(self, path: Path, entries: dict[str, dict[str, Any]], saved_by: int) -> None:
        reader = Reader(path, entries)
        self.model.load_state_dict(reader.tensors(MODEL))
        moments = read_moments(reader)
        own = self.optimizer.optim
        for group in own.param_groups:
            for parameter in group["params"]:
                step, flat = moments.of(self._names[parameter], parameter.numel())
                own.state.pop(parameter, None)
                if step is not None:
                    own.state[parameter] = {"step": step} | {
                        kind: value.view(parameter.shape).to(parameter.device, copy=True)
                        for kind, value in flat.items()
                    }

    def signature(self) -> dict[str, Any]:
        return self._signature("oss", None, shapes(self.model))


@torch.no_grad()
def clip(gradients: list[torch.Tensor], limit: float, each: bool = False) -> None:
    """Shorten gradients in place so that their norm is at most `limit`: that of all together, or of `each` by itself.

    Each by itself is what the published ASiT code does; it changes the gradient's direction. Nothing waits for the
    device.
    """
    if not gradients:
        return
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients])
    if not each:
        norms = norms.square().sum().sqrt()
    shares = (limit / (norms + TINY)).clamp(max=1.0).float()
    if not each:
        torch._foreach_mul_(gradients, shares)
        return
    for gradient, share in zip(gradients, shares):
        gradient.mul_(share)
