"""What the training loop asks of an objective (a self-supervised or a supervised task)."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from gamut.data.batch import PackedBatch
from gamut.errors import RecipeError
from gamut.models.backbone import Backbone
from gamut.models.vit import Block
from gamut.models.weights import Loaded, load_backbone
from gamut.recipe import schema
from gamut.registry import OBJECTIVES
from gamut.train.partitions import is_cut


@dataclass(frozen=True)
class Moment:
    """Where a run stands. `fraction` = draws before this step / draws of the whole run: every schedule's argument."""

    epoch: int
    step: int  # steps since the start of the run
    step_in_epoch: int
    fraction: float


@dataclass(frozen=True)
class Prepared:
    """A micro-batch that is loaded, augmented and masked on the training device, ready for its forward."""

    inputs: Any
    counts: torch.Tensor  # float64 [len(objective.count_names)], summed over ranks and micro-steps into `totals`


def mixed(module: nn.Module, precision: str, device: torch.device) -> torch.autocast:
    """What a module is to run under in a recipe of that precision: autocast to bf16 where its weights are in float32.

    A module whose weights are in bf16 needs none: autocast would have every LayerNorm work on float32 copies."""
    wide = next(module.parameters()).dtype == torch.float32
    return torch.autocast(device.type, torch.bfloat16, enabled=wide and precision == "bf16")


@contextlib.contextmanager
def evaluating(module: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Within it the module is in evaluation mode, and under `mixed`; its mode is as it was afterwards."""
    was_training = module.training
    module.eval()
    try:
        with mixed(module, precision, device):
            yield
    finally:
        module.train(was_training)


def described(recipe: schema.Recipe, mean: float, std: float) -> dict[str, Any]:
    """Of weights that a recipe trains on log-mels: their model, and how a sound becomes what the model reads.

    mean and std: of the log-mel, by which it is normalised, also where the recipe leaves them to the shard set.
    """
    views = recipe.views
    front = {"mode": recipe.front.mode, "resolutions": list(views.resolutions), "poolings": list(views.poolings)}
    return {"model": asdict(recipe.model), "front": front, "normalise": {"mean": mean, "std": std}}


class Objective(ABC):
    """Owns the model, its forward and its loss; knows nothing of ranks, engines or checkpoints on disk.

    The loop calls, every global step: `prepare` for each micro-batch; one float64 all-reduce of the counts into
    `totals`; `loss` and backward for each; `predictions` and `collapsed`, on which the update may depend; then, only if
    it was applied, `after_step` on every rank.
    """

    model: nn.Module  # what the optimiser trains; called only through the engine that wraps it
    count_names: tuple[str, ...]

    def start_from(self, init: str) -> object:
        """Take the weights of another run, checkpoint or file. Returns what was taken, to be printed."""
        raise RecipeError(f"This objective cannot begin with the weights of init={init}: take the key out.")

    @abstractmethod
    def prepare(self, batch: PackedBatch, at: Moment) -> Prepared: ...

    @abstractmethod
    def loss(
        self, engine: nn.Module, prepared: Prepared, totals: dict[str, float], at: Moment
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(this micro-batch's share of the global loss, metrics as shares that sum to the global value).

        Each term is a sum over this micro-batch divided by the global count in `totals`; a count of 0 gives 0. For an
        empty batch the loss is 0 x the model's outputs, so that every rank runs the same collectives.
        """

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """The repeated parts of the model, or of a copy, which the recipe's `compute` may compile or compute twice."""
        return [part for part in module.modules() if isinstance(part, Block)]

    def compiled(self) -> bool:
        """Whether the model's blocks are compiled."""
        return next((part.compiled for part in self.model.modules() if isinstance(part, Block)), False)

    def copies(self) -> tuple[nn.Module, ...]:
        """Frozen modules that follow the model (a teacher, in fp32; the same in another type): an engine that cuts the
        model over the ranks cuts them alike, and `gamut.train.partitions` reads and moves them."""
        return ()

    def replicas(self) -> dict[str, torch.Tensor]:
        """What every rank must have alike, bit for bit: weights that are not cut over the ranks, and the like."""
        modules = {"model": self.model} | {f"copy {n}": module for n, module in enumerate(self.copies())}
        return {
            f"{where}.{name}": value
            for where, module in modules.items()
            for name, value in module.state_dict(keep_vars=True).items()
            if not is_cut(value)
        }

    def predictions(self) -> dict[str, torch.Tensor]:
        """What this step's predictions were like over all ranks (may use collectives): metrics, float64 [] each on the
        model's device, before its update; the same names in every step.

        Called on every rank once a step's micro-batches are through. Where a loss or a gradient was not finite nothing
        of it is looked at, and `skipped_step` is called."""
        return {}

    def collapsed(self, values: dict[str, float]) -> str:
        """What is wrong, in words, where a step's metrics show that nothing is being learned any more; else ""."""
        return ""

    def after_step(self, at: Moment) -> dict[str, float]:
        """The update of this step was applied: move teacher and centres (may use collectives). Returns metrics."""
        return {}

    def skipped_step(self) -> None:
        """The step was not applied: drop what was accumulated for it."""

    def averages(self, epoch: int) -> bool:
        """Whether `average` is to be called now that this epoch's steps are taken. An attempt that begins with the
        epoch's evaluation asks again."""
        return False

    def average(self, weights: dict[str, torch.Tensor]) -> None:
        """Take in the model's weights at the end of an epoch, fp32 on the CPU, the same on every rank."""

    def extra_state(self) -> dict[str, torch.Tensor]:
        """Tensors besides the model to save with a checkpoint (teacher, centres), the same and whole on every rank.

        Called by all ranks together."""
        return {}

    def described(self) -> dict[str, Any]:
        """What the weights are of, kept with them in every file: model, front end, classes. JSON."""
        return {}

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave. Raises CheckpointError naming a missing or misshapen tensor."""

    def parameter_groups(self) -> list[dict[str, Any]] | None:
        """Optional groups with `lr_scale` and `weight_decay_scale`; None: two, by `optim.undecayed`."""
        return None


class Pretraining(Objective):
    """An objective that trains a backbone without labels, for what comes after: probes, features, fine-tuning.

    A subclass takes `Mine(recipe, mean, std, device)`, with the normalisation of the log-mel. `model` has the backbone
    that is trained as its attribute `backbone`, or `extra_state` names another `teacher.backbone`: there a run's
    weights are looked for. Registered under a name, it is what a recipe's `objective` may be:

        @OBJECTIVES.register("mine")
        class Mine(Pretraining): ...

    What it must be told besides is a dataclass of keys (`gamut.settings.key`), `Mine.Options`: a recipe gives them in
    its section `options`, and `gamut.recipe.load.options_of(recipe)` is one of these.
    """

    Options: ClassVar[type | None] = None
    rebuilds = False  # whether there are reconstructions to look at, by `rebuild`
    about: Mapping[str, Any] = {}  # what `described` gives; said by `pretraining`

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """What the run is for: it is probed and looked at while it is trained."""

    def start_from(self, init: str) -> Loaded:
        """Take the backbone of another run, checkpoint or file."""
        return load_backbone(self.backbone, init).for_use(self.described())

    def described(self) -> dict[str, Any]:
        return dict(self.about)

    def rebuild(self, batch: PackedBatch, at: Moment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(patches, hidden, rebuilt patches) of a batch, [N, 256] each: only where the objective `rebuilds`."""
        raise NotImplementedError

    def masked(self, batch: PackedBatch, at: Moment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """(patches, hidden, patches as the student sees them) of a batch, [N, 256] each, to look at; None where nothing
        is hidden."""
        return None


def pretraining(recipe: schema.Recipe, mean: float, std: float, device: torch.device) -> Pretraining:
    """The objective that the recipe names, with its model on the device. Raises RecipeError where it is none."""
    made = OBJECTIVES[recipe.objective](recipe, mean, std, device)
    if not isinstance(made, Pretraining):
        raise RecipeError(
            f"objective={recipe.objective} gives a {type(made).__name__}: derive it from "
            "gamut.train.objective.Pretraining, which says what an objective must have."
        )
    made.about = described(recipe, mean, std)
    return made
