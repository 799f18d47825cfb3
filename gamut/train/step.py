"""One global step, from loaded micro-batches to the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gamut.data.batch import PackedBatch
from gamut.errors import RunError
from gamut.train.engine import Engine
from gamut.train.objective import Moment, Objective, Prepared
from gamut.train.spans import Spans
from gamut.train.world import World

LARGEST_NORM = 1e18  # beyond it DeepSpeed, which squares norms in float32, sees infinity


@dataclass(frozen=True)
class Asks:
    """What a rank wishes of the others at the end of this step: any rank's wish is every rank's."""

    stop: bool = False  # it was told to end (preemption)
    save: bool = False  # a checkpoint is due
    writing: bool = False  # it is still writing one


@dataclass(frozen=True)
class Outcome:
    """What came of a step, the same on every rank except `finite`."""

    applied: bool
    clips: int
    holes: int
    asks: Asks
    waited: float  # seconds, mean over ranks
    values: dict[str, float]  # metrics, global; none where the step was not applied
    finite: list[bool]  # this rank's micro-batches: was the loss finite?
    refused: bool = False  # not applied although everything was finite
    bytes: int = 0  # read from storage for it
    spans: tuple[Spans, ...] = ()  # where its time went, where it was taken


@dataclass
class Ready:
    """A step that is prepared: it depends on its clips and its moment alone, and leaves no trace if it is not taken."""

    prepared: list[Prepared]
    total: torch.Tensor  # float64, over all ranks: the objective's counts, clips, holes, bytes, what any rank asks for
    spans: Spans
    done: torch.cuda.Event | None = None  # where it was prepared in another stream than that of the training


class Beside:
    """What is done while a step is trained: nothing, by itself."""

    def backward_begins(self) -> None:
        """The last backward of the step comes next."""

    def backward_runs(self, agreed: Asks) -> None:
        """The device was given that backward, in the step in which the ranks agreed on so much."""


class Stepper:
    """Takes global steps with an objective and an engine. Collectives a step: two small ones, and the engine's own."""

    def __init__(
        self,
        objective: Objective,
        engine: Engine,
        world: World,
        allows: Callable[[dict[str, float]], bool] = lambda values: True,
        clock: torch.device | None = None,
    ) -> None:
        """allows: asked with a finite step's metrics, before its update, whether to apply it. clock: the device whose
        time is taken, where it is not the host's."""
        self.allows = allows
        self.clock = clock or torch.device("cpu")
        self.objective = objective
        self.engine = engine
        self.world = world
        self._names: tuple[str, ...] | None = None  # metrics, agreed on at the first step

    def prepare(self, batches: list[PackedBatch], at: Moment, asks: Asks) -> Ready:
        """Everything is masked before the first backward, so that every loss knows its global denominator."""
        spans = Spans(self.clock)
        spans.begin("prepare")
        prepared = [self.objective.prepare(batch, at) for batch in batches]
        spans.begin("communicate")
        total = self._count(batches, [one.counts for one in prepared], asks)
        spans.end()
        return Ready(prepared, total, spans)

    def take(
        self,
        batches: list[PackedBatch],
        at: Moment,
        lr: float,
        weight_decay: float,
        asks: Asks,
        waited: float,
        ready: Ready | None = None,
        beside: Beside | None = None,
    ) -> Outcome:
        """Take one step with this rank's micro-batches, for which it `waited` so many seconds, and which were prepared
        already where it is `ready`.

        A step with a loss or a gradient that is not finite on any rank is applied on none.
        """
        objective, engine, beside = self.objective, self.engine, beside or Beside()
        ready = ready or self.prepare(batches, at, asks)
        spans = Spans(self.clock)
        spans.begin("communicate")
        if ready.done is not None:
            ready.done.synchronize()  # not of the training's stream, whose update may still run
        totals, clips, holes, read, agreed = self._counted(ready.total)
        prepared, ready.prepared = ready.prepared, []

        spans.begin("train")
        finite: list[torch.Tensor] = []
        parts: list[dict[str, torch.Tensor]] = []
        for number, inputs in enumerate(prepared, 1):
            last = number == len(prepared)
            with engine.micro_step(last) as module:
                share, metrics = objective.loss(module, inputs, totals, at)
                if last:
                    beside.backward_begins()
                engine.backward(share)
            finite.append(torch.isfinite(share.detach()))
            parts.append(metrics)
        del prepared, inputs
        beside.backward_runs(agreed)

        spans.begin("communicate")
        norm, waited, values = self._reduce(engine.gradient_square(), finite, parts, waited)
        spans.begin("update")
        finite_step = math.isfinite(norm)
        applied = finite_step and self.allows(values)
        if applied:
            engine.set_schedule(lr, weight_decay)
            engine.apply()
            values |= {"gradient_norm": norm} | objective.after_step(at)
        else:
            engine.drop()
            objective.skipped_step()
            values = {}
        spans.end()
        good = [True] * len(finite) if finite_step else [bool(flag) for flag in finite]
        refused, told = finite_step and not applied, (ready.spans, spans)
        return Outcome(applied, clips, holes, agreed, waited, values, good, refused, read, told)

    def leave_out(self, batches: list[PackedBatch], asks: Asks, waited: float) -> Outcome:
        """A step that is not trained on: its clips and holes are counted, and the ranks tell their wishes."""
        nothing = torch.zeros(len(self.objective.count_names), dtype=torch.float64)
        _, clips, holes, read, agreed = self._counted(self._count(batches, [nothing], asks))
        return Outcome(False, clips, holes, agreed, waited, {}, [True] * len(batches), True, read)

    def _count(self, batches: list[PackedBatch], counts: list[torch.Tensor], asks: Asks) -> torch.Tensor:
        """One float64 all-reduce: the objective's counts, clips, holes, bytes read, what any rank asks for."""
        device = self.world.device
        clips, holes = sum(batch.clips for batch in batches), sum(len(batch.holes) for batch in batches)
        own = [clips, holes, sum(batch.bytes for batch in batches), asks.stop, asks.save, asks.writing]
        mine = torch.stack([count.to(device, torch.float64) for count in counts]).sum(0)
        known = torch.tensor(own, dtype=torch.float64).to(device, non_blocking=True)
        return self.world.sum(torch.cat([mine, known]))

    def _counted(self, sums: torch.Tensor) -> tuple[dict[str, float], int, int, int, Asks]:
        """What `_count` put together, read."""
        total = sums.tolist()
        names = self.objective.count_names
        return (
            dict(zip(names, total[: len(names)], strict=True)),
            int(total[-6]),
            int(total[-5]),
            int(total[-4]),
            Asks(total[-3] > 0, total[-2] > 0, total[-1] > 0),
        )

    def _reduce(
        self, square: torch.Tensor, finite: list[torch.Tensor], parts: list[dict[str, torch.Tensor]], waited: float
    ) -> tuple[float, float, dict[str, float]]:
        """One float64 all-reduce: (global gradient norm, not finite if any loss is not; mean wait; metrics, those of
        the objective's predictions among them). All are read from the device at once."""
        device = self.world.device
        names = self._metric_names(parts)
        mine = torch.zeros(len(names), dtype=torch.float64, device=device)
        for metrics in parts:
            mine += torch.stack([metrics[name].detach().to(device, torch.float64) for name in names])
        bad = (~torch.stack(finite)).sum().double()
        waiting = torch.tensor(waited / self.world.size, dtype=torch.float64).to(device, non_blocking=True)
        total = self.world.sum(torch.cat([torch.stack([square, bad, waiting]), mine]))
        predictions = self.objective.predictions()
        read = torch.cat([total, *(value[None] for value in predictions.values())]).tolist()
        norm = math.sqrt(read[0]) if 0 <= read[0] < LARGEST_NORM**2 and read[1] == 0 else math.nan
        return norm, read[2], dict(zip([*names, *predictions], read[3:], strict=True))

    def _metric_names(self, parts: list[dict[str, torch.Tensor]]) -> tuple[str, ...]:
        if self._names is None:
            self._names = tuple(sorted(set().union(*self.world.gather([n for part in parts for n in part]))))
        for part in parts:
            if set(part) != set(self._names):
                raise RunError(
                    f"An objective must give the same metrics for every micro-batch: {sorted(part)} are not "
                    f"{list(self._names)}."
                )
        return self._names
