"""Gradients are clipped together, or each by itself."""

from __future__ import annotations

import pytest
import torch

from gamut.train.oss import clip
from tests.close import assert_close


def gradients() -> list[torch.Tensor]:
    return [torch.tensor([3.0, 4.0]), torch.tensor([[0.6], [0.8]]), torch.tensor([12.0])]  # of norm 5, 1 and 12


def test_together_as_torch_does_it() -> None:
    mine = gradients()
    clip(mine, 3.0)
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients()]
    for parameter, gradient in zip(parameters, gradients()):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, 3.0)
    for found, parameter in zip(mine, parameters):
        assert_close(found, parameter.grad, 1e-6)


def test_each_by_itself() -> None:
    mine = gradients()
    clip(mine, 3.0, each=True)
    assert [gradient.norm().item() for gradient in mine] == pytest.approx([3.0, 1.0, 3.0], rel=1e-6)
    for found, was in zip(mine, gradients()):
        assert_close(found / found.norm(), was / was.norm())


@pytest.mark.parametrize("each", [False, True])
def test_short_gradients_stay_as_they_are(each: bool) -> None:
    mine = gradients()
    clip(mine, 100.0, each)
    assert all(torch.equal(found, was) for found, was in zip(mine, gradients()))
    clip([], 1.0, each)
