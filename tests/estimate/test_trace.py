"""What the trace sees of a few calls on a GPU that is not there."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gamut.estimate.answers import Answers, listening
from gamut.estimate.calls import Call
from gamut.estimate.fakes import surroundings
from gamut.estimate.trace import Trace, tracing
from gamut.models.layout import layout
from gamut.models.vit import Mlp
from gamut.randomness import key_torch

CUDA = torch.device("cuda", 0)


def followed(work: Callable[[Trace], Any], answers: Answers | None = None) -> Trace:
    trace = Trace(CUDA, answers or Answers(), False, frozenset({77}))
    with surroundings(False, True), tracing(trace), trace.hold("activations"):
        work(trace)
    return trace


def calls(trace: Trace) -> list[Call]:
    return [call for call in trace.calls if call.launches]


def test_a_product_has_its_operations_and_bytes() -> None:
    def work(trace: Trace) -> None:
        torch.empty(64, 128, device=CUDA) @ torch.empty(128, 32, device=CUDA)

    (product,) = calls(followed(work))
    assert product.kind == "matmul"
    assert product.flops == 2 * 64 * 128 * 32
    assert product.bytes == 4 * (64 * 128 + 128 * 32 + 64 * 32)


def test_views_and_empty_memory_are_no_launches() -> None:
    def work(trace: Trace) -> None:
        x = torch.empty(64, 128, device=CUDA)
        x.view(-1)[3:].unflatten(0, (-1, 1)).T.expand(5, -1, -1)

    assert not calls(followed(work))


def test_an_expanded_operand_is_read_once() -> None:
    def work(trace: Trace) -> None:
        torch.empty(1000, 100, device=CUDA) + torch.empty(100, device=CUDA)

    (added,) = calls(followed(work))
    assert added.bytes == 4 * (2 * 100_000 + 100)


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1.0, 2.0], device=CUDA), 1),
        (lambda x: torch.zeros(9).to(CUDA, non_blocking=True), 0),
        (lambda x: (x * 2.0).relu().softmax(0), 0),
        (lambda x: torch.repeat_interleave(x, torch.ones(9, dtype=torch.int64, device=CUDA), output_size=9), 0),
    ],
)
def test_what_the_host_waits_for(work: Callable[[torch.Tensor], Any], waits: int) -> None:
    trace = followed(lambda trace: work(torch.empty(9, device=CUDA)))
    assert sum(call.wait for call in trace.calls) == waits


def test_sizes_that_values_decide_are_the_share_of_a_real_pass() -> None:
    """Asked at the same line, of 10 numbers with 3 above zero and then of a thousand that have no values."""

    def ask(x: torch.Tensor) -> int:
        return len(hidden_places(x))

    answers = Answers()
    with listening(answers):
        assert ask(torch.tensor([1.0, 0, 0, 2, 0, 3, 0, 0, 0, 0])) == 3
    found: list[int] = []
    trace = followed(lambda trace: found.append(ask(torch.empty(1000, device=CUDA))), answers)
    assert found == [300]
    assert not trace.answers.guessed


def hidden_places(x: torch.Tensor) -> torch.Tensor:
    return x.nonzero()


def test_a_backward_is_booked_on_the_line_of_its_forward() -> None:
    def work(trace: Trace) -> None:
        with torch.device("meta"):
            mlp = Mlp(32, 64)
        mlp.to_empty(device=CUDA)
        leaves = trace.told.leaves(mlp.parameters())
        with torch.autocast("cuda", torch.bfloat16):
            loss = mlp(torch.empty(10, 32, device=CUDA)).float().sum()
        loss.backward()
        assert len(leaves) == 4
        assert all(parameter.grad is not None for parameter in mlp.parameters())

    products = [call for call in calls(followed(work)) if call.kind == "matmul"]
    forward, backward = ([call for call in products if call.backward == way] for way in (False, True))
    assert all(call.half for call in products)
    assert len(forward) == 2
    assert len(backward) == 3  # nothing learns from the input
    assert {call.line for call in backward} == {call.line for call in forward}
    assert all(call.line.startswith("gamut/models/vit.py:") for call in products)


def test_memory_lives_as_long_as_its_tensors() -> None:
    def work(trace: Trace) -> None:
        memory = trace.memory
        x = torch.empty(1024, device=CUDA)
        y = x * 2.0
        part = y[:10]
        assert memory.total == 2 * 4096
        del y
        assert memory.total == 2 * 4096  # a part holds all of it
        del part
        gc.collect()
        assert memory.total == 4096
        trace.memory.begin()
        z = torch.empty(10, 77, device=CUDA)
        assert memory.now["logits"] == 3584  # of 3,080, in blocks of 512
        del z, x

    memory = followed(work).memory
    assert memory.total == 0
    assert memory.peak == 4096 + 3584


def test_attention_has_the_pairs_of_its_segments() -> None:
    from gamut.models.attention import attention

    def work(trace: Trace) -> None:
        frames = torch.empty(2, dtype=torch.int64, device=CUDA)
        where = layout(frames, (16, 64), class_token=False)  # 8 and 32 tokens
        q = torch.empty(40, 2, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
        attention(q, q, q, where).float().sum().backward()

    found = [call for call in calls(followed(work)) if call.kind == "attention"]
    assert [call.name for call in found] == ["_varlen_attn", "_varlen_attn_backward"]
    assert found[0].flops == 4 * (8**2 + 32**2) * 2 * 64
    assert found[1].flops == 2.5 * found[0].flops


def test_lines_of_the_hash() -> None:
    trace = followed(lambda trace: key_torch(1, torch.empty(5, dtype=torch.int64, device=CUDA)))
    assert {call.line.partition(":")[0] for call in calls(trace)} == {"gamut/randomness.py"}


def test_nothing_fake_stays_behind() -> None:
    followed(lambda trace: torch.empty(3, device=CUDA))
    assert not torch.cuda.is_available() or torch.cuda.device_count()
    x = torch.ones(3, requires_grad=True)
    x.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
    assert torch.autograd.Function.apply.__qualname__ == "Function.apply"
