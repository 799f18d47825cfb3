"""A small problem with everything the loop must carry: a student, a teacher, a centre, counts, holes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from gamut.data.batch import Hole, PackedBatch
from gamut.errors import CheckpointError
from gamut.plan import Epoch, deal, forwards
from gamut.preemption import PREEMPTION, Preemption
from gamut.recipe import schema
from gamut.train.loop import train
from gamut.train.objective import Moment, Objective, Prepared
from gamut.train.partitions import fill, partition, whole_state
from gamut.train.session import Session, lease
from gamut.train.world import World

WIDTH = 6


@dataclass(frozen=True)
class ToyEpoch:
    """What the loop reads of a plan, with `packs` packs of a few clips in each of `steps` steps; some are empty."""

    number: int
    steps: int
    packs: int
    pack_offset: np.ndarray
    row: np.ndarray
    cut: int = 0
    block: int = 0
    blocks: int = 1
    first_step: int = 0

    end, last, following = Epoch.end, Epoch.last, Epoch.following
    forecast, packs_of = Epoch.forecast, Epoch.packs_of
    pack_clips = None

    @property
    def draws(self) -> int:
        return len(self.row)

    def draws_before(self, step: int) -> int:
        return int(self.pack_offset[step * self.packs])

    @property
    def pack_tokens(self) -> np.ndarray:
        return np.diff(self.pack_offset) * 8

    pack_cost = pack_tokens

    @property
    def length(self) -> np.ndarray:
        return np.full((self.draws, 1), 2000)

    @property
    def frames(self) -> np.ndarray:
        return np.full((self.draws, 1), 16)

    def needed(self, draws: slice) -> np.ndarray:
        return np.full((self.draws, 1), 15 * 160 + 400)[draws]


def toy_epoch(number: int, steps: int = 5, packs: int = 4) -> ToyEpoch:
    """The same sizes in every epoch, other clips."""
    sizes = np.random.default_rng(7).integers(0, 4, steps * packs)
    offset = np.concatenate([[0], np.cumsum(sizes)])
    return ToyEpoch(number, steps, packs, offset, np.random.default_rng(number).permutation(int(offset[-1])))


def toy_batch(rows: np.ndarray, epoch: int, holes: tuple[Hole, ...] = ()) -> PackedBatch:
    n = len(rows)
    whole = torch.as_tensor(rows, dtype=torch.int64)
    return PackedBatch(
        waveform=torch.zeros(0, dtype=torch.int16),
        offset=torch.zeros(n + 1, dtype=torch.int64),
        length=torch.zeros(n, dtype=torch.int64),
        hop=torch.full((n,), 160),
        frames=torch.full((n,), 16),
        clip_id=whole * 7919 + 13,
        draw=torch.zeros(n, dtype=torch.int64),
        row=whole,
        label_offset=torch.zeros(n + 1, dtype=torch.int64),
        label=torch.zeros(0, dtype=torch.int64),
        views=1,
        epoch=epoch,
        sizes=(16,) * n,
        holes=holes,
    )


class ToyLoader:
    """Deals a toy epoch as the real loader deals a plan. Rows in `holes` are holes, `seen` notes every row read."""

    holes: frozenset[int] = frozenset()
    seen: ClassVar[list[tuple[int, int, list[int]]]] = []

    def __init__(
        self,
        index: Any,
        epoch: ToyEpoch,
        *,
        rank: int,
        world: int,
        per_forward: int,
        start_step: int = 0,
        **rest: Any,
    ) -> None:
        self.epoch, self.rank, self.world, self.per_forward, self.start = epoch, rank, world, per_forward, start_step

    def go_on(self, epoch: ToyEpoch) -> None:
        self.epoch, self.start = epoch, 0

    def close(self) -> None:
        pass

    def __iter__(self):
        epoch = self.epoch
        for step in range(self.start, epoch.steps):
            first = step * epoch.packs
            cost = epoch.pack_cost[first : first + epoch.packs].astype(float)
            dealt = deal(cost, self.world, self.per_forward)
            batches, everything = [], []
            for micro in dealt[self.rank, : forwards(cost, self.world, self.per_forward)]:
                spans = [slice(*epoch.pack_offset[first + p : first + p + 2]) for p in micro if p >= 0]
                rows = np.concatenate([np.zeros(0, np.int64), *(epoch.row[span] for span in spans)])
                bad = tuple(Hole(int(row), f"clip{row}", "truncated") for row in rows if int(row) in self.holes)
                kept = np.array([row for row in rows if int(row) not in self.holes], np.int64)
                batches.append(toy_batch(kept, epoch.number, bad))
                everything += rows.tolist()
            self.seen.append((epoch.number, step, everything))
            yield step, batches


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Linear(WIDTH, 16)
        self.norm = nn.LayerNorm(16)
        self.second = nn.Linear(16, 4, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.norm(self.first(x.to(self.first.weight.dtype)))))


def inputs(rows: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x [n, WIDTH], weight [n]) of clips: a fixed function of the row and the epoch."""
    phase = rows.double()[:, None] * torch.arange(1, WIDTH + 1, dtype=torch.float64) * 0.7310 + epoch * 0.37
    return torch.sin(phase).float(), (rows % 3 + 1).float()


class Toy(Objective):
    """Student follows a target, and the teacher's centred output. Each term has a count of its own."""

    count_names = ("weight", "clips")

    def __init__(self) -> None:
        self.model = Network()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.centre = torch.zeros(4)
        self.sums = torch.zeros(5, dtype=torch.float64)
        self.poison: set[int] = set()  # steps whose loss is not finite on the rank that has clips of them
        self.poison_gradient: set[int] = set()
        self.spikes: set[int] = set()  # steps whose loss is a thousand times what it should be
        self.before_step = lambda step: None  # a test's hand in every step
        self.losses: list[float] = []

    def prepare(self, batch: PackedBatch, at: Moment) -> Prepared:
        self.before_step(at.step)
        x, weight = inputs(batch.row, batch.epoch)
        return Prepared((x, weight, batch), torch.stack([weight.sum(), torch.tensor(float(batch.clips))]).double())

    def loss(self, engine, prepared: Prepared, totals: dict[str, float], at: Moment):
        x, weight, batch = prepared.inputs
        with torch.no_grad():
            goal = self.teacher(x)
        self.sums[:4] += goal.sum(0, dtype=torch.float64)
        self.sums[4] += len(goal)
        out = engine(x).float()
        target = torch.stack([x[:, 0] * x[:, 1], x[:, 2], x[:, 3].square(), x[:, 4]], 1)
        fit = (weight[:, None] * (out - target).square()).sum() / max(totals["weight"], 1.0)
        follow = (out - (goal - self.centre)).square().sum() / max(totals["clips"], 1.0)
        loss = fit + 0.5 * follow
        if at.step in self.spikes:
            loss = loss * 1000.0
        if at.step in self.poison and batch.clips and 0 in self._ranks(batch):
            loss = loss * torch.tensor(float("nan"))
        if at.step in self.poison_gradient and batch.clips:
            loss = loss + 0.0 * torch.sqrt(0.0 * out.sum())  # the value is finite, its gradient 0 x infinity
        return loss, {"loss": loss.detach(), "loss/fit": fit.detach()}

    def _ranks(self, batch: PackedBatch) -> set[int]:
        return {dist.get_rank()} if dist.is_initialized() else {0}

    def copies(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def after_step(self, at: Moment) -> dict[str, float]:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                partition(slow).lerp_(partition(fast).float(), 0.1 + 0.1 * at.fraction)
        if dist.get_world_size() > 1:
            dist.all_reduce(self.sums)
        if self.sums[4] > 0:
            self.centre = 0.9 * self.centre + 0.1 * (self.sums[:4] / self.sums[4]).float()
        self.sums.zero_()
        return {"centre": float(self.centre.norm())}

    def skipped_step(self) -> None:
        self.sums.zero_()

    def extra_state(self) -> dict[str, torch.Tensor]:
        return {f"teacher.{n}": p for n, p in whole_state(self.teacher).items()} | {"centre": self.centre}

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        if "centre" not in tensors:
            raise CheckpointError("The checkpoint has no tensor centre.")
        self.centre = tensors["centre"].clone()
        for name, parameter in self.teacher.named_parameters():
            fill(parameter, tensors[f"teacher.{name}"])


class Index:
    """What the loop asks of an index: names for messages."""

    def key(self, row: int) -> str:
        return f"clip{row}"

    def require_sound(self) -> None:
        pass


class Notes:
    """A tracker, a progress display and a record in one."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.saved: list[int] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.lines.append((step, values))

    def checkpoint(self, step: int, uri: str, sha256: str) -> None:
        self.saved.append(step)

    def update(self, done: float, values: dict[str, float]) -> None:
        pass


def toy_recipe(**changes: Any) -> schema.Recipe:
    recipe = schema.Recipe(
        epochs=4,
        step=schema.Step(packs=4, clips=2),
        optim=schema.Optim(lr=3e-2, lr_base_batch=8, warmup_epochs=0.5, clip=0.5, weight_decay=0.05),
        loader=schema.Loader(workers=0, max_holes=0.2),
        checkpoint=schema.Checkpoint(every_epochs=0.4, every_minutes=1e9, keep=3),
        run=schema.Run(threads=1, timeout_seconds=60.0),
        deepspeed={"zero_optimization": {"stage": 1}},
    )
    return replace(recipe, **changes)


class ToyPlans:
    """Plans of toy epochs."""

    def __init__(self, steps: int = 5, packs: int = 4) -> None:
        self.steps, self.packs = steps, packs
        self.fingerprint = {"index": "toy", "packs": str(packs)}

    def take(self, number: int, step: int = 0) -> ToyEpoch:
        return toy_epoch(number, self.steps, self.packs)

    def planned(self, number: int, block: int = 0) -> None:
        return None

    def close(self) -> None:
        pass


class StopAt(Preemption):
    """A signal that comes while step number `steps` of the run is being prepared."""

    def __init__(self, objective: Toy, steps: int) -> None:
        super().__init__()
        before = objective.before_step
        self.steps = steps

        def ask(step: int) -> None:
            before(step)
            self.asked = self.asked or step >= steps - 2  # told in one step, agreed on in the next

        objective.before_step = ask


def teach(
    world: World,
    folder: Path,
    recipe: schema.Recipe,
    objective: Toy | None = None,
    *,
    stop_after: int | None = None,
    **more: Any,
) -> dict:
    """Train the toy in `folder`: how it ended, its metrics, and all that must be the same after a resume.

    stop_after: ask for preemption in the last of so many steps of the run.
    """
    objective = objective or Toy()
    notes = Notes()
    ToyLoader.seen = []
    preemption = PREEMPTION if stop_after is None else StopAt(objective, stop_after)
    plans = more.pop("plans", None) or ToyPlans()
    index = more.pop("index", None) or Index()
    growth = more.pop("growth", None)
    session = Session(recipe, world, index, folder, plans, notes, notes, preemption, growth=growth)
    with lease(folder, world):
        result = train(objective, session, **({"make_loader": ToyLoader} | more))
    weights = {name: value.detach().float().numpy().copy() for name, value in objective.model.state_dict().items()}
    extra = {name: value.detach().numpy().copy() for name, value in objective.extra_state().items()}
    return {
        "status": result.status,
        "state": result.state,
        "weights": weights,
        "extra": extra,
        "lines": notes.lines,
        "saved": notes.saved,
        "seen": ToyLoader.seen,
    }
