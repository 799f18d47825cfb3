"""What a step's predictions are like: the teacher's centres, how far predictions differ, and when they collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from gamut.recipe import schema
from pretrain import losses

# Of the largest entropy, log K; of what the spread could be; of the largest mean of cosines, sqrt(K). Healthy runs were
# seen at 0.02 to 0.95 (below 0.6 with a teacher_temperature of 0.04), 0.3 to 1 and 0.02 to 0.1.
EVEN, ONE_CLASS, SAME, AWAY = 0.9999, 0.001, 0.001, 1.0
FEW = 64  # rows that are added up in float32


def column_sums(values: torch.Tensor) -> torch.Tensor:
    """float64 [K]: the sums over the rows of [n, K], of float32 sums over few rows each, so that no copy of all of them
    is made in float64."""
    whole = len(values) // FEW * FEW
    sums = values[:whole].view(-1, FEW, values.shape[1]).sum(1, dtype=torch.float32).sum(0, dtype=torch.float64)
    return sums + values[whole:].sum(0, dtype=torch.float32)


class Centre:
    """Running mean of the teacher's outputs, one vector [K], moved once a global step (ASiT section III-D, DINO).

    Sums and counts gather over micro-steps; all micro-steps of a step use the old centre.
    """

    def __init__(self, width: int, momentum: float, device: torch.device) -> None:
        self.value = torch.zeros(width, device=device)
        self.coming = self.value  # what it moves to if the step is applied
        self.momentum = momentum
        self.sum = torch.zeros(width + 1, dtype=torch.float64, device=device)  # the last entry counts rows

    def add(self, logits: torch.Tensor) -> None:
        """Gather a micro-step's teacher outputs [n, K]."""
        self.sum[:-1] += column_sums(logits)
        self.sum[-1] += len(logits)

    def take(self, total: torch.Tensor) -> None:
        """Compute where the sums of all ranks move it."""
        mean = (total[:-1] / total[-1].clamp_min(1.0)).float()
        moved = self.value * self.momentum + mean * (1.0 - self.momentum)
        self.coming = torch.where(total[-1] > 0, moved, self.value)

    def move(self) -> None:
        """The step was applied."""
        self.value = self.coming

    def drop(self) -> None:
        """Forget what was gathered."""
        self.sum.zero_()


class Spread:
    """How far the predictions of a global step differ: sum over k of the variance of p_k over its rows [n, K].

    0 where every row is the same distribution, whatever it is: a collapse that a cross-entropy does not show; 1 - 1/K
    where rows are certain, each of another prototype. Computed as the mean of |p|^2 less |mean of p|^2.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        # Of the last step that had rows; and as a share of what it could be for rows as certain as these are, of the
        # mean of |p|^2: 1 where nothing was predicted, so nothing alike. float64 [] each.
        self.value, self.share = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device).unbind()
        self.sum = torch.zeros(width + 2, dtype=torch.float64, device=device)  # the last two: of squares, of rows

    @torch.no_grad()
    def add(self, distribution: torch.Tensor) -> None:
        """Gather a micro-step's distributions, float32 [n, K], of few rows: they are copied in float64."""
        distribution = distribution.double()
        self.gather(distribution.sum(0), distribution.square().sum(), len(distribution))

    def gather(self, chances: torch.Tensor, squares: torch.Tensor, rows: torch.Tensor | int) -> None:
        """Gather sums over the rows of a micro-step: of the distributions [K], of their squares, how many there are."""
        self.sum[:-2] += chances
        self.sum[-2] += squares
        self.sum[-1] += rows

    def take(self, total: torch.Tensor) -> None:
        """Compute it from the sums of all ranks."""
        square, mean, rows = total[-2], total[:-2], total[-1]
        some = (rows > 0) & square.isfinite()  # a step that is not finite is refused, and leaves no trace
        rows = rows.clamp_min(1.0)
        spread = (square / rows - (mean / rows).square().sum()).clamp_min(0.0)
        self.value = torch.where(some, spread, self.value)
        self.share = torch.where(some, spread * rows / square, 1.0)

    def drop(self) -> None:
        """Forget what was gathered."""
        self.sum.zero_()


def sum_up(gathered: Sequence[Centre | Spread]) -> None:
    """One all-reduce for all centres and spreads. A centre that saw no row will stay where it is."""
    joined = torch.cat([one.sum for one in gathered])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(joined)
    for one, total in zip(gathered, joined.split([len(one.sum) for one in gathered]), strict=True):
        one.take(total)
        one.drop()


def collapse(of: str, outputs: int, values: dict[str, float]) -> str:
    """What is wrong with a step's predictions, in words, or "".

    A teacher whose distributions are all even or all one prototype (DINO, section 5.3), or the same for all that it
    hears, teaches nothing; nor does one whose outputs run away in a direction, faster than its centre follows.

    of: "" for class tokens, "_data" for data tokens; outputs: K; values: the step's metrics, of which one that is not
    there is not looked at.
    """
    norm = values.get(f"teacher/centre_norm{of}", 0.0)
    if not norm <= AWAY * math.sqrt(outputs):
        return f"teacher/centre_norm{of} was {norm:.4g}: the teacher's outputs run away in one direction"
    most = math.log(outputs)
    entropy = values.get(f"teacher/entropy{of}", 0.5 * most) / most
    if entropy > EVEN:
        return f"teacher/entropy{of} was {entropy:.2%} of its most: the teacher finds every prototype as likely"
    if entropy < ONE_CLASS:
        return f"teacher/entropy{of} was {entropy:.2%} of its most: the teacher gives everything to one prototype"
    spread = values.get(f"teacher/spread_share{of}", 1.0)
    if spread < SAME:
        return f"teacher/spread{of} was {spread:.2%} of its most: the teacher says the same of all that it hears"
    return ""


def _of_rows(
    teacher: torch.Tensor, rows: torch.Tensor | None, others: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of what the teacher says of all tokens, [n, K]: that of the rows [m, K] (None: of all), and of the others."""
    other = None if others is None else torch.index_select(teacher, 0, others)
    return teacher if rows is None else torch.index_select(teacher, 0, rows), other


class Centres:
    """A centre of class tokens and one of data tokens, and the spreads of what is predicted of them.

    The losses that are on, and their metrics, are told apart by an ending: "" of class tokens, "_data" of data tokens.
    """

    def __init__(self, asit: schema.Asit, dim: int, device: torch.device) -> None:
        self.classes = Centre(asit.prototypes, asit.centre_momentum, device)
        self.data = Centre(asit.prototypes_data or asit.prototypes, asit.centre_momentum, device)
        on = {"": (asit.weight_global, self.classes), "_data": (asit.weight_local, self.data)}
        self.on = {of: centre for of, (weight, centre) in on.items() if weight}
        self.outputs = {of: len(centre.value) for of, centre in self.on.items()}
        if asit.targets == "features":  # which need no centre, but may be alike
            del self.on["_data"]
            self.outputs["_data"] = dim
        widths = {f"teacher/spread{of}": width for of, width in self.outputs.items()}
        widths |= {"student/spread": asit.prototypes} if "" in self.on else {}
        self.spreads = {name: Spread(width, device) for name, width in widths.items()}

    def target(self, of: str, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """The teacher's distributions, float32, of a micro-step's logits [n, K], which are gathered."""
        self.on[of].add(logits)
        target = losses.teacher_distribution(logits, self.on[of].value, temperature)
        self.spreads[f"teacher/spread{of}"].add(target)
        return target

    def distil(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        rows: torch.Tensor | None,
        others: torch.Tensor | None,
        counts: torch.Tensor | None,
        sharpness: tuple[float, float],
        compiled: bool = False,
    ) -> losses.Distilled:
        """What the data tokens `rows` of a micro-step are taught (see `losses.distil`); the centre gathers all of them.

        student: logits [m, K] of the rows; teacher: of all, [n, K]; rows: int64 [m]; None: all, in their order;
        others: int64 [m], whose distributions are the other half of the targets, in mixtures.
        """
        self.on["_data"].add(teacher)
        teacher, other = _of_rows(teacher, rows, others)
        given = losses.distil(student, teacher, self.on["_data"].value, sharpness, counts, compiled, other)
        number = len(teacher) if counts is None else counts.sum()
        self.spreads["teacher/spread_data"].gather(given.chances, given.squares, number)
        return given

    def regress(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        rows: torch.Tensor | None,
        others: torch.Tensor | None,
        counts: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `distil` for features [m, D] and [n, D], float32: the loss's sum."""
        teacher, other = _of_rows(teacher, rows, others)
        if other is not None:
            teacher = (teacher + other) / 2
        some = teacher if counts is None else teacher * counts[:, None]
        number = len(teacher) if counts is None else counts.sum()
        sums = some.sum(0, dtype=torch.float64), some.square().sum(dtype=torch.float64)
        self.spreads["teacher/spread_data"].gather(*sums, number)
        return losses.regression(student, teacher, counts)

    def values(self) -> dict[str, torch.Tensor]:
        """Metrics of the step that was gathered, over all ranks, which call it together: float64 []."""
        sum_up(self._gathered())
        values = {name: spread.value for name, spread in self.spreads.items()}
        values |= {f"teacher/spread_share{of}": self.spreads[f"teacher/spread{of}"].share for of in self.outputs}
        return values | {f"teacher/centre_norm{of}": centre.coming.norm().double() for of, centre in self.on.items()}

    def collapsed(self, values: dict[str, float]) -> str:
        """What is wrong with the step of these metrics, in words, or ""."""
        return next(filter(None, (collapse(of, outputs, values) for of, outputs in self.outputs.items())), "")

    def move(self) -> None:
        """The step was applied."""
        for centre in self.on.values():
            centre.move()

    def drop(self) -> None:
        """The step was not: forget what was gathered."""
        for part in self._gathered():
            part.drop()

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of them, and every rank has alike."""
        return {"centre.class": self.classes.value, "centre.data": self.data.value}

    def _gathered(self) -> list[Centre | Spread]:
        """In the same order on every rank."""
        return [self.classes, self.data, *self.spreads.values()]
