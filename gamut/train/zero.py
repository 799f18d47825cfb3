"""DeepSpeed as an engine, ZeRO stages 0, 1 and 2, with the boundaries of a step made visible.

Another number of ranks reads the optimiser's state cut anew: each parameter group is one flat vector (weights, and as
many of Adam's two moments), padded at its end and cut into equal parts, one a rank. Joining the parts and cutting them
for another world loses nothing. DeepSpeed's own way (its universal format) writes a second checkpoint and unpickles it
unchecked.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from gamut.errors import CheckpointError, RecipeError
from gamut.recipe import schema
from gamut.train.config import engine_config, stage_of, sums_beside
from gamut.train.engine import Engine, adam, adam_options
from gamut.train.objective import Objective
from gamut.train.partitions import shapes
from gamut.train.storage import FOLDER, Reader, Writer
from gamut.train.summing import Summing
from gamut.train.world import World, quiet

OPTIMISER_FILE = re.compile(r"(?P<start>.*zero_pp_rank_)(?P<rank>\d+)(?P<end>_mp_rank_\d+_optim_states\.pt)")
WEIGHTS, STATE = "single_partition_of_fp32_groups", "base_optimizer_state"


class Zero(Engine):
    """DeepSpeed would decide by itself whether to update, and at stage 0 it never looks. Here the loop decides."""

    def __init__(self, objective: Objective, recipe: schema.Recipe, world: World, accumulation: int) -> None:
        super().__init__(objective, recipe, world)
        elements = sum(parameter.numel() for parameter in self.model.parameters())
        config = engine_config(recipe, world.size, accumulation, elements)
        try:
            DeepSpeedConfig(copy.deepcopy(config))
        except Exception as error:  # assertions, pydantic's errors and its own
            said = " ".join(str(error).split())
            raise RecipeError(f"DeepSpeed does not accept the recipe's section `deepspeed`: {said}") from error
        self.config = config
        self.stage = stage_of(config)
        self.accumulation = accumulation
        with quiet():
            self.module, self.optimizer, _, _ = deepspeed.initialize(
                model=self.model,
                optimizer=adam(recipe.optim)(self.groups, lr=0.0, **adam_options(recipe.optim)),
                config=config,
                dist_init_required=False,
            )
        if self.stage == 2 and recipe.compute.compile:
            reduce_in_order(self.optimizer)
        beside = world.size > 1 and sums_beside(config, recipe)
        self.summing = Summing(self.module, list(self.model.parameters())) if beside else None
        self.module._copy_recovery_script = lambda save_path: None  # it would put Python scripts into checkpoints

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[nn.Module]:
        # DeepSpeed reduces in the last one of a step, which may have fewer than `accumulation`.
        self.module.set_gradient_accumulation_boundary(last)
        if self.summing is not None:
            self.summing.begin(last)
        yield self.module

    def backward(self, share: torch.Tensor) -> None:
        # DeepSpeed averages over ranks and micro-steps; the shares are to be summed over both.
        self.module.backward(share * (self.world.size * self.accumulation))

    @torch.no_grad()
    def gradient_square(self) -> torch.Tensor:
        optimizer = self.optimizer
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
        self.module.step()
        assert self.module.was_step_applied(), "DeepSpeed skipped an update whose gradients were finite"

    def drop(self) -> None:
        optimizer = self.optimizer
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
    def weights(self, wanted: bool = True) -> dict[str, torch.Tensor]:
        weights = {}
        for name, value in self.model.state_dict().items() if wanted else ():
            kind = torch.float32 if value.is_floating_point() else value.dtype
            weights[name] = value.detach().to("cpu", kind, copy=True)
        if self.precision != "fp32":
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    full = safe_get_full_fp32_param(parameter)
                    if wanted:
                        weights[name] = full.to("cpu", copy=True)
        return weights

    def save(self, writer: Writer) -> None:
        """Optimiser and weights, as DeepSpeed lays them out."""
        self.module.checkpoint_engine = writer
        self.module.save_checkpoint(str(writer.root), tag=FOLDER, save_latest=False)

    def load(self, path: Path, entries: dict[str, dict[str, Any]], saved_by: int) -> None:
        self.module.checkpoint_engine = self._reader(path, entries, saved_by)
        with quiet():
            found, _ = self.module.load_checkpoint(str(path), tag=FOLDER, load_lr_scheduler_states=False)
        assert found is not None, f"DeepSpeed found nothing to load in {path / FOLDER}"

    def _reader(self, path: Path, entries: dict[str, dict[str, Any]], saved_by: int) -> Reader:
        if saved_by == self.world.size:
            return Reader(path, entries)
        elements, sizes = self.partition()
        world = self.world
        return ResplitReader(
            path, entries, rank=world.rank, world=world.size, saved_by=saved_by, elements=elements, sizes=sizes
        )

    def partition(self) -> tuple[list[int], list[int]]:
        """(numbers in each parameter group, numbers in a rank's part of it); empty at stage 0, which has no parts."""
        if self.stage == 0:
            return [], []
        optimizer = self.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            groups, parts = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
        else:
            groups, parts = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
        return [sum(p.numel() for p in group) for group in groups], [part.numel() for part in parts]

    def signature(self) -> dict[str, Any]:
        return self._signature("deepspeed", self.stage, shapes(self.model))


def reduce_in_order(optimizer: Any) -> None:
    """Have ZeRO-2 reduce gradients in the parameters' order, once a backward has ended.

    By itself it puts them into its bucket as they come and adds up the buckets of all ranks. Those of a compiled block
    come all at once, in an order that torch leaves to a heap: another one on a rank with an empty pack.
    """
    reduce = optimizer.reduce_ready_partitions_and_remove_grads
    end = optimizer.overlapping_partition_gradients_reduce_epilogue
    ready: dict[int, tuple[Any, int]] = {}

    def note(parameter: Any, group: int) -> None:
        ready[optimizer.get_param_id(parameter)] = (parameter, group)

    def reduce_all() -> None:
        for number in sorted(ready):
            reduce(*ready[number])
        ready.clear()
        end()

    optimizer.reduce_ready_partitions_and_remove_grads = note
    optimizer.overlapping_partition_gradients_reduce_epilogue = reduce_all


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
