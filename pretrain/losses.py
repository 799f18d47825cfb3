"""ASiT's three losses, and KoLeo, as sums, so that their denominators can be counted over the whole global step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from gamut.compiler import compiled_function

# Bytes of float32 that a loss over tokens makes at a time: what stays in a CPU's cache; on a GPU enough to fill it.
CHUNK_CPU, CHUNK_DEVICE = 1 << 20, 1 << 28
NEAREST = 1e-3  # the least distance that KoLeo tells from 0


def reconstruction(predicted: torch.Tensor, pixels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Sum of |predicted - pixels| over hidden pixels (Eq. 3; the paper's sum, divided by their number elsewhere).

    predicted, pixels: [tokens, 256]; hidden: bool [tokens, 256]. float32 scalar.
    """
    return ((predicted.float() - pixels).abs() * hidden).sum()


def teacher_distribution(logits: torch.Tensor, centre: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """softmax((z - centre) / temperature), float32 [n, K]: centred and sharpened (Eq. 5)."""
    return F.softmax((logits.float() - centre) / temperature, dim=-1)


def cross_entropy(target: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over rows of H(target, softmax(logits / temperature)). target: [n, K]; logits: [n, K]. float32 scalar."""
    return -(target * F.log_softmax(logits.float() / temperature, dim=-1)).sum()


class Distilled(NamedTuple):
    """What `distil` gives: sums over its rows."""

    loss: torch.Tensor  # float32 []: of the cross-entropies
    entropy: torch.Tensor  # float32 []: of the targets' entropies in nats
    chances: torch.Tensor  # float64 [K]: of the targets
    squares: torch.Tensor  # float64 []: of the squares of the targets


def distil(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    centre: torch.Tensor,
    sharpness: tuple[float, float],
    counts: torch.Tensor | None = None,
    compiled: bool = False,
    other: torch.Tensor | None = None,
) -> Distilled:
    """`cross_entropy` of the student's logits [n, K] with `teacher_distribution` of the teacher's [n, K].

    Only the loss has a gradient, and only by `logits`. Some rows are worked on at a time and their gradient is kept in
    the type of the logits: all of them in float32 would be the largest tensors of a step, several times over.
    sharpness: temperature of the teacher and of the student; counts: bool [n], the rows that are summed; None: all.
    compiled: by torch.compile, as the blocks are: few passes over the logits where torch's operators take twenty.
    other: [n, K], also the teacher's, where the target is the mean of both distributions.
    """
    return Distilled(*_Distil.apply(logits, teacher, centre, *sharpness, counts, compiled, other))


def distil_rows(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    centre: torch.Tensor,
    warm: float | torch.Tensor,
    cool: float | torch.Tensor,
    counts: torch.Tensor | None,
    gradient: torch.Tensor | None,
    other: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Distilled` of some rows, in float32; `gradient` [n, K] is overwritten with the loss's by `logits`.

    Sums go over each row first: with them a compiler does all that comes before `chances` while it has the row."""
    target = teacher_distribution(teacher, centre, warm)
    if other is not None:
        target = (target + teacher_distribution(other, centre, warm)) / 2
    if counts is not None:
        target *= counts[:, None]
    log_p = F.log_softmax(logits.float() / cool, dim=-1)
    loss, uncertain = -(target * log_p).sum(-1).sum(), entropy(target)
    squares = target.square().sum(-1).sum()
    if gradient is not None:
        gradient.copy_((log_p.exp_().mul_(target.sum(-1, keepdim=True)) - target).div_(cool))
    return loss, uncertain, target.sum(0), squares


class _Distil(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        teacher: torch.Tensor,
        centre: torch.Tensor,
        warm: float,
        cool: float,
        counts: torch.Tensor | None,
        compiled: bool,
        other: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        rows, width = logits.shape
        loss, uncertain, squares, chances = (
            torch.zeros(shape, dtype=torch.float64, device=logits.device) for shape in ((), (), (), (width,))
        )
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        most = max(1, (CHUNK_CPU if logits.device.type == "cpu" else CHUNK_DEVICE) // (4 * width))
        chunk = max(1, -(-rows // max(1, -(-rows // most))))  # all about as large: for a row alone torch compiles anew
        work: Callable[..., Any] = distil_rows
        sharpness: tuple[Any, ...] = (warm, cool)
        if compiled and chunk > 1:
            work = compiled_function(distil_rows)
            # As tensors: a number would be compiled into the code, and the teacher's changes from step to step.
            sharpness = tuple(torch.full((), value, device=logits.device) for value in sharpness)
        for begin in range(0, rows, chunk):
            some = slice(begin, begin + chunk)
            parts = work(
                logits[some],
                teacher[some],
                centre,
                *sharpness,
                None if counts is None else counts[some],
                None if gradient is None else gradient[some],
                *(() if other is None else (other[some],)),
            )
            for total, part in zip((loss, uncertain, chances, squares), parts):
                total += part
        ctx.save_for_backward(gradient)
        values = loss.float(), uncertain.float(), chances, squares
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # The loss's own gradient has no dimensions, so the product has the type of the logits.
        return gradient * given[0], *[None] * 7


def regression(predicted: torch.Tensor, target: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
    """Sum over rows of the mean square difference to the target (data2vec). float32 scalar.

    predicted, target: [n, D]; counts: bool [n], the rows that are summed; None: all.
    """
    each = (predicted.float() - target).square().mean(-1)
    return each.sum() if counts is None else (each * counts).sum()


def crosswise(target: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over clips and over both directions of the CLS cross-entropy between a clip's two views (Eq. 7).

    target: [clips, 2, K]; logits: [..., clips, 2 + L, K], for each mask of the views. The teacher's view 0 teaches the
    student's view 1 and the reverse, and both teach each of the student's L local crops: 2 + 2 L terms a clip (the
    published code's multi-crop has 10).
    """
    terms = cross_entropy(target.flip(1), logits[..., :2, :], temperature)
    if logits.shape[-2] == 2:
        return terms
    return terms + cross_entropy(target.sum(1, keepdim=True), logits[..., 2:, :], temperature)


def entropy(distribution: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the entropy in nats. distribution: [n, K]."""
    return -(distribution * distribution.clamp_min(1e-12).log()).sum(-1).sum()


def koleo(vectors: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Sum of -log of the distance to the nearest neighbour on the unit sphere (KoLeo, Sablayrolles et al. 2019, Eq. 4).

    vectors: float32 [n, D]; group: int64 [n]; only rows of one group are neighbours. A row that is
    alone in its group adds nothing. float32 scalar. Distances are floored at NEAREST, smoothly: two clips of the same
    silence would push each other apart without bound.
    """
    if not len(vectors):
        return vectors.sum()
    unit = F.normalize(vectors, dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    beside = (group[:, None] == group) & ~itself
    with torch.no_grad():
        nearest = (unit @ unit.T).masked_fill(~beside, -torch.inf).argmax(dim=1)
    # A product with zeros and ones: an index's backward would add up in no fixed order on a GPU.
    neighbour = F.one_hot(nearest, len(unit)).to(unit.dtype) @ unit
    squares = (unit - neighbour).square().sum(dim=1) + NEAREST**2
    return -(squares.log() / 2).masked_fill(~beside.any(dim=1), 0.0).sum()
