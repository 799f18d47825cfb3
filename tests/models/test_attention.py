"""Attention: the back ends agree with each other and with softmax written out, forward and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.models.attention import attention, pooling_attention
from gamut.models.layout import Layout, layout
from tests.close import assert_close

# One column of patches (16 frames), runs of equal lengths, 30 s, and the same length apart from its run.
SIZES = (16, 160, 160, 2992, 48, 48, 48, 160)


def lay(sizes: tuple[int, ...], class_token: bool = True) -> Layout:
    return layout(torch.tensor(sizes, dtype=torch.int64), sizes, class_token)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, where: Layout, scale: float | None, one_query: bool = False
) -> torch.Tensor:
    """softmax(q k^T) v, a segment and a head at a time, in float64."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    outputs, begin = [], 0
    for number, length in enumerate(where.lengths):
        mine = slice(begin, begin + length)
        queries = q[number : number + 1] if one_query else q[mine]
        scores = torch.einsum("qhd,khd->hqk", queries.double(), k[mine].double()) * factor
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[mine].double()))
        begin += length
    return torch.cat(outputs)


@pytest.mark.parametrize("backend", ["auto", "loop", "dense"])
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("one_query", [False, True])
def test_equals_softmax_written_out(backend: str, scale: float | None, one_query: bool) -> None:
    where = lay(SIZES)
    rows = where.segments if one_query else where.tokens
    tensors = [random(n, 3, 16, seed=i).requires_grad_() for i, n in enumerate((rows, where.tokens, where.tokens))]
    weight = random(rows, 3, 16, seed=9)
    function = pooling_attention if one_query else attention
    result = function(*tensors, where, scale=scale, backend=backend)
    expected = written_out(*tensors, where, scale, one_query)
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() <= 1e-5
    got = torch.autograd.grad((result * weight).sum(), tensors)
    reference = torch.autograd.grad((expected * weight).sum(), tensors)
    for mine, theirs in zip(got, reference):
        assert (mine - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), max_size=8), st.booleans())
def test_loop_equals_dense(columns: list[int], class_token: bool) -> None:
    where = lay(tuple(16 * n for n in columns), class_token)
    q, k, v = (random(where.tokens, 2, 8, seed=i) for i in range(3))
    loop, dense = (attention(q, k, v, where, backend=backend) for backend in ("loop", "dense"))
    assert loop.shape == (where.tokens, 2, 8)
    assert_close(loop, dense, 1e-5)


def test_segments_do_not_see_each_other() -> None:
    where = lay((48, 32))
    q, k, v = (random(where.tokens, 2, 8, seed=i) for i in range(3))
    before = attention(q, k, v, where)
    k[25:], v[25:] = 1e3, float("nan")
    after = attention(q, k, v, where)
    assert torch.equal(before[:25], after[:25])


def test_no_tokens_give_no_output_and_zero_gradients() -> None:
    where = lay(())
    tensors = [torch.zeros(0, 2, 8, requires_grad=True) for _ in range(3)]
    result = attention(*tensors, where)
    result.sum().backward()
    assert result.shape == (0, 2, 8)
    assert all(tensor.grad is not None for tensor in tensors)


def test_wrong_arguments_are_named() -> None:
    where = lay((16,))
    q = random(where.tokens, 2, 8)
    with pytest.raises(ValueError, match="'flex'"):
        attention(q, q, q, where, backend="flex")
    with pytest.raises(ValueError, match="do not fit"):
        attention(q[1:], q, q, where)


def test_layout_of_a_small_batch() -> None:
    where = lay((16, 48))
    assert (where.tokens, where.max_length, where.lengths, where.widths) == (34, 25, (9, 25), (1, 3))
    assert where.cu_seqlens.tolist() == [0, 9, 34]
    assert where.cu_seqlens.dtype == torch.int32
    assert where.cls.tolist() == [0, 9]
    assert where.patch.tolist() == [*range(1, 9), *range(10, 34)]
    assert where.segment.tolist() == [0] * 9 + [1] * 25
    assert where.time.tolist() == [0] * 8 + [0] * 8 + [1] * 8 + [2] * 8
    assert where.frequency.tolist() == list(range(8)) * 4
    assert where.columns.tolist() == [1, 3]
    bare = lay((16, 48), class_token=False)
    assert bare.cls.tolist() == []
    assert bare.patch.tolist() == list(range(32))
    with pytest.raises(ValueError, match="multiple of 16"):
        lay((17,))
