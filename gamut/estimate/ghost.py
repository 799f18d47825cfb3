"""DeepSpeed and OSS as an account sees them: what they hold, compute and send for a step, on the tensors of one rank.

The real ones need process groups and values. This one follows their calls where they compute, and says what they send.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from gamut.estimate.calls import BESIDE
from gamut.recipe import schema
from gamut.train.config import BUCKET, engine_config, stage_of, sums_beside
from gamut.train.engine import Unsaved, adam, adam_options
from gamut.train.objective import Objective
from gamut.train.world import World

if TYPE_CHECKING:
    pass

WHOLE = 500_000_000  # numbers that DeepSpeed sends in one go, at most
Holding = Callable[[str], contextlib.AbstractContextManager[None]]


class Ghost(Unsaved):
    """One rank's share of the engine that the recipe names, among `ranks`.

    `hold(kind)`: what is allocated within is of that kind; `called(tensor, kind)`: what there is already; `send(name,
    bytes)`: a collective over so many bytes of this rank's is due.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: schema.Recipe,
        world: World,
        ranks: int,
        hold: Holding,
        called: Callable[[torch.Tensor, str], None],
        send: Callable[[str, float], None],
    ) -> None:
        super().__init__(objective, recipe, world)
        self.groups = []  # of parameters that are converted below
        self.ranks, self.hold, self.called, self.send = ranks, hold, called, send
        self.deepspeed = recipe.engine != "oss"
        self.stage = stage_of(recipe.deepspeed) if self.deepspeed else 0
        self.bf16 = self.deepspeed and recipe.precision == "bf16"
        self.clips = recipe.optim.clip > 0
        if self.bf16:
            with hold("weights"):
                self.model.bfloat16()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.count = sum(parameter.numel() for parameter in self.trained)
        self.starts = [0, *itertools.accumulate(parameter.numel() for parameter in self.trained)]
        told = engine_config(recipe, ranks, 1, self.count) if self.deepspeed else {}
        narrow = self.bf16 and told.get("communication_data_type", "bf16") == "bf16"
        self.wire = torch.bfloat16 if narrow else torch.float32  # of gradients that are sent
        self.beside = self.bf16 and sums_beside(told, recipe)
        self.mine = -(-self.count // ranks) if self.stage else self.count  # numbers that this rank updates
        self.sums = self._gather() if self.bf16 else None
        with hold("optimiser"):
            self.own = nn.Parameter(torch.empty(self.mine, device=world.device)) if self.stage else None
            updated = [self.own] if self.own is not None else self.trained
            if not self.deepspeed:
                updated = updated[::ranks]  # OSS: whole parameters to each rank, about as many to all
            self.optimizer = adam(recipe.optim)(updated, lr=1e-3, foreach=True, **adam_options(recipe.optim))
            for parameter in updated:
                moments = [torch.empty_like(parameter, dtype=torch.float32) for _ in range(2)]
                state = {"step": torch.tensor(1.0), "exp_avg": moments[0], "exp_avg_sq": moments[1]}
                self.optimizer.state[parameter] = state
        self._watch_gradients()

    def _gather(self) -> torch.Tensor:
        """float32 sums of bf16 gradients: all of them, or with ZeRO-2 and 3 those of this rank."""
        with self.hold("gradients"):
            return torch.empty(self.count if self.stage < 2 else self.mine, device=self.world.device)

    def _watch_gradients(self) -> None:
        """What becomes of each gradient as soon as it is there."""
        pieces = [None] * len(self.trained)
        if self.sums is not None and self.stage < 2:
            pieces = list(self.sums.split([parameter.numel() for parameter in self.trained]))  # type: ignore[arg-type]
        for parameter, piece in zip(self.trained, pieces):
            parameter.register_post_accumulate_grad_hook(self._arrived(piece))

    def _arrived(self, piece: torch.Tensor | None) -> Callable[[torch.Tensor], None]:
        def arrived(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self.called(parameter.grad, "gradients")
            if piece is not None:  # BF16_Optimizer
                with torch.no_grad():
                    piece.add_(parameter.grad.to(torch.float32).view(-1))
            elif self.stage >= 2:  # to the rank that updates it, and forgotten here
                self.send("reduce-scatter", parameter.grad.numel() * self.wire.itemsize)
                parameter.grad = None

        return arrived

    def set_schedule(self, lr: float, weight_decay: float) -> None:
        """Numbers on the host."""

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[nn.Module]:
        if self.stage == 3 and self.ranks > 1:
            # Every weight for the forward, and again for the backward.
            self.send("all-gather", 2 * self.count * (2 if self.bf16 else 4))
        yield self.model

    def backward(self, share: torch.Tensor) -> None:
        if self.bf16:
            for parameter in self.trained:
                parameter.grad = None
        (share * float(self.ranks)).backward()

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.trained if parameter.grad is not None]

    @torch.no_grad()
    def gradient_square(self) -> torch.Tensor:
        if self.ranks > 1 and self.stage < 2:
            self._all_reduce()
        gradients = self._gradients() if self.sums is None else [self.sums[: self.mine]]
        if not gradients:  # ZeRO-2 and 3 in float32: this rank's part
            gradients = [torch.empty(self.mine, device=self.world.device)]
        norms = torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients])
        return norms.double().square().sum()

    def _all_reduce(self) -> None:
        """In buckets, after the backward or beside it; sums that are sent in bf16 are converted, and back."""
        name, bucket = (BESIDE, BUCKET) if self.beside else ("all-reduce", WHOLE)
        for begin in range(0, self.count, bucket):
            numbers = min(bucket, self.count - begin)
            self.send(name, numbers * self.wire.itemsize)
            if self.sums is not None and self.sums.dtype != self.wire:
                with self.hold("gradients"):
                    part = self.sums[begin : begin + numbers]
                    part.copy_(part.to(self.wire, copy=True))

    @torch.no_grad()
    def apply(self) -> None:
        if self.own is None:
            if self.clips:
                torch._foreach_mul_(self._gradients(), 1.0)
            self.optimizer.step()
        else:
            self._update(self.own)
        if self.ranks > 1 and self.stage < 3:
            self.send("all-gather", self.count * self.trained[0].element_size())
        self.drop()

    def _update(self, own: nn.Parameter) -> None:
        """This rank's part, in float32, and then the weights from it."""
        gradient = self._in_one_piece() if self.sums is None else self.sums[: self.mine]
        bool(torch.isfinite(torch.linalg.vector_norm(gradient)))  # DeepSpeed looks itself, and waits
        if self.clips:
            bool(torch.linalg.vector_norm(gradient) < 1)
            gradient.mul_(1.0)
        own.grad = gradient
        with self.hold("optimiser"):
            self.optimizer.step()
        own.grad = None
        with self.hold("weights"):
            own.detach().to(self.trained[0].dtype, copy=True)

    def _in_one_piece(self) -> torch.Tensor:
        """float32: each gradient is copied into a bucket, averaged there, copied to those of its kind, and what is this
        rank's from there into its part."""
        with self.hold("gradients"):
            part = torch.empty(self.mine, device=self.world.device)
            for start, gradient in zip(self.starts, self._gradients()):
                bucket = gradient.reshape(-1).clone()
                averaged = bucket.div_(self.ranks).clone()
                mine = min(averaged.numel(), self.mine - start)
                if mine > 0:
                    part[start : start + mine].copy_(averaged[:mine])
        return part

    def drop(self) -> None:
        if self.sums is not None:
            self.sums.zero_()
        else:
            for parameter in self.trained:
                parameter.grad = None
