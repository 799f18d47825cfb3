"""Losses and teacher against small cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gamut import compiler
from gamut.compiler import compiled_function
from pretrain import losses
from pretrain.centres import Centre, sum_up
from pretrain.teacher import make_teacher, momentum, move
from tests.close import assert_close


def test_reconstruction_counts_hidden_pixels_only() -> None:
    predicted = torch.tensor([[1.0, 5.0, -1.0, 0.0]])
    pixels = torch.tensor([[0.0, 0.0, 1.0, 3.0]])
    hidden = torch.tensor([[True, False, True, False]])
    assert losses.reconstruction(predicted, pixels, hidden).item() == 1.0 + 2.0


def test_teacher_is_centred_then_sharpened() -> None:
    got = losses.teacher_distribution(torch.tensor([[2.0, 1.0]]), torch.tensor([1.0, 0.0]), 0.5)
    assert torch.equal(got, torch.tensor([[0.5, 0.5]]))
    got = losses.teacher_distribution(torch.tensor([[1.0, 0.0]]), torch.zeros(2), 0.5)
    assert got[0, 0].item() == pytest.approx(1 / (1 + math.exp(-2.0)))


def test_cross_entropy_by_hand() -> None:
    target = torch.tensor([[0.25, 0.75]])
    logits = torch.tensor([[0.0, 0.1 * math.log(3.0)]])  # at temperature 0.1: probabilities 1/4, 3/4
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert losses.cross_entropy(target, logits, 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_global_loss_goes_across_the_views() -> None:
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # view 0 says class 0, view 1 says class 1
    agree = torch.tensor([[[0.0, 5.0], [5.0, 0.0]]])  # the student's view 0 says what the teacher's view 1 does
    assert losses.crosswise(target, agree, 0.1).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.crosswise(target, agree.flip(1), 0.1).item() == pytest.approx(100.0)


def test_momentum_is_a_cosine_to_one() -> None:
    assert momentum(0.996, 0.0) == pytest.approx(0.996)
    assert momentum(0.996, 0.5) == pytest.approx(0.998)
    assert momentum(0.996, 1.0) == 1.0


def test_teacher_moves_in_fp32_even_after_a_bf16_student() -> None:
    student = nn.Linear(4, 4).to(torch.bfloat16)
    teacher = make_teacher(student)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.5)
    move(teacher, student, 0.999)
    for (name, slow), fast in zip(teacher.named_parameters(), student.parameters(), strict=True):
        assert slow.dtype == torch.float32
        assert not slow.requires_grad
        assert_close(slow, 0.999 * before[name] + 0.001 * fast.float(), 1e-7)
        assert not torch.equal(slow, before[name])


def test_centre_is_a_mean_over_the_global_step() -> None:
    centre = Centre(2, 0.9, torch.device("cpu"))
    centre.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    centre.add(torch.tensor([[8.0, 0.0]]))
    assert torch.equal(centre.value, torch.zeros(2))  # micro-steps of a step all use the old centre
    sum_up([centre])
    assert torch.equal(centre.value, torch.zeros(2))  # the step may yet be refused
    centre.move()
    assert_close(centre.value, torch.tensor([0.4, 0.2]))
    centre.add(torch.tensor([[9.0, 9.0]]))
    centre.drop()
    sum_up([centre])  # a step without rows leaves it where it is
    centre.move()
    assert_close(centre.value, torch.tensor([0.4, 0.2]))


def test_entropy_in_nats() -> None:
    assert losses.entropy(torch.full((2, 8), 1 / 8)).item() == pytest.approx(2 * math.log(8))
    assert losses.entropy(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4 * 24 * 7, 1 << 20], ids=["a row", "some rows", "all rows"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_distil_is_cross_entropy_with_the_teachers_distribution(
    kind: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_CPU", chunk)
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(50, 24, generator=generator).to(kind) for _ in range(2))
    logits.requires_grad_()
    centre = 0.1 * torch.randn(24, generator=generator)
    mine = losses.distil(logits, teacher, centre, (0.07, 0.1))
    target = losses.teacher_distribution(teacher, centre, 0.07)
    theirs = losses.cross_entropy(target, logits, 0.1)
    assert_close(mine.loss, theirs, 1e-6)
    assert_close(mine.entropy, losses.entropy(target), 1e-6)
    assert_close(mine.chances, target.double().sum(0), 1e-6)
    assert_close(mine.squares, target.double().square().sum(), 1e-6)
    (here,) = torch.autograd.grad(mine.loss / 50, logits)
    (there,) = torch.autograd.grad(theirs / 50, logits)
    assert here.dtype == kind
    assert_close(here, there, 1e-6 if kind == torch.float32 else 2**-7)  # in bf16 it is rounded twice


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("aot_eager", torch.float32),
        pytest.param("inductor", torch.float32, marks=pytest.mark.long),
        pytest.param("inductor", torch.bfloat16, marks=pytest.mark.long),
    ],
)
def test_compiled_distil_is_distil_and_is_compiled_once(
    backend: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiler, "BACKEND", backend)
    monkeypatch.setattr(losses, "CHUNK_CPU", 4 * 24 * 100)
    reset()
    compiled_function.cache_clear()
    counters.clear()
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for step in range(20):  # of ragged sizes, with a teacher that sharpens from step to step
        rows = int(torch.randint(2, 500, (), generator=generator))
        logits, teacher = (torch.randn(rows, 24, generator=generator).to(kind) for _ in range(2))
        counts = torch.rand(rows, generator=generator) < 0.7
        centre, sharpness = 0.1 * torch.randn(24, generator=generator), (0.04 + 0.001 * step, 0.1)
        found = []
        for compiled in (True, False):
            taught = logits.clone().requires_grad_()
            given = losses.distil(taught, teacher, centre, sharpness, counts, compiled)
            (gradient,) = torch.autograd.grad(given.loss / rows, taught)
            found.append((*given, gradient))
        for mine, theirs in zip(*found):
            assert_close(mine, theirs, 3e-6 if kind == torch.float32 else 2**-7)
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1, graphs
    assert not counters["graph_break"]
    reset()
    compiled_function.cache_clear()


def test_distil_of_no_row_is_nothing() -> None:
    logits = torch.zeros(0, 8, requires_grad=True)
    given = losses.distil(logits, torch.zeros(0, 8), torch.zeros(8), (0.07, 0.1))
    assert [float(value.detach().sum()) for value in given] == [0.0] * 4
    (gradient,) = torch.autograd.grad(given.loss, logits)
    assert gradient.shape == logits.shape
