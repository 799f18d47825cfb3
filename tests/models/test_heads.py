"""Heads: shapes, unit prototypes, weights from a seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gamut.models.classifier import Classifier
from gamut.models.heads import ProjectionHead, ReconstructionHead, UnitLinear

HEADS = [
    lambda seed: ProjectionHead(12, 32, 8, 20, seed=seed),
    lambda seed: ProjectionHead(12, 32, 8, 20, seed=seed, trained_gain=True),
    lambda seed: ReconstructionHead(12, 32, 8, seed=seed, last_gelu=True),
    lambda seed: ReconstructionHead(12, 32, 8, seed=seed),
    lambda seed: Classifier(12, 5, seed=seed),
]
WIDTHS = [20, 20, 256, 256, 5]


@pytest.mark.parametrize(("make", "width"), zip(HEADS, WIDTHS))
def test_shapes_seed_and_global_generator(make, width: int) -> None:
    before = torch.get_rng_state()
    head, same, other = make(1), make(1), make(2)
    assert torch.equal(torch.get_rng_state(), before)
    tokens = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    assert head(tokens).shape == (7, width)
    assert head(tokens[:0]).shape == (0, width)
    assert torch.equal(head(tokens), same(tokens))
    assert not torch.equal(head(tokens), other(tokens))
    assert all(torch.isfinite(parameter).all() for parameter in head.parameters())


def test_logits_are_cosines_whatever_the_size_of_the_weights() -> None:
    head = ProjectionHead(12, 32, 8, 20)
    tokens = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    logits = head(tokens)
    expected = torch.cosine_similarity(head.mlp(tokens)[:, None], head.last_layer.weight[None], dim=-1)
    assert (logits - expected).abs().max() <= 1e-6
    with torch.no_grad():
        head.last_layer.weight *= torch.linspace(0.1, 30.0, 20)[:, None]
    assert (head(tokens) - logits).abs().max() <= 1e-6


def test_unit_rows_equal_torchs_weight_norm_with_gain_one() -> None:
    ours = UnitLinear(6, 9)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False), dim=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        ours.weight = nn.Parameter(torch.randn(9, 6, generator=generator))
        theirs.parametrizations.weight.original0.fill_(1.0)
        theirs.parametrizations.weight.original1.copy_(ours.weight)
    x = torch.randn(4, 6, generator=generator)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    assert (ours(x) - theirs(x)).abs().max() <= 1e-6
    assert (ours.weight.grad - theirs.parametrizations.weight.original1.grad).abs().max() <= 5e-6
    # Along the weight itself nothing changes the output, so the gradient is across it.
    assert (ours.weight.grad * ours.weight).sum(1).abs().max() <= 5e-6


def test_heads_of_the_paper() -> None:
    head = ProjectionHead(768, 2048, 256, 8192)
    assert [tuple(layer.weight.shape) for layer in head.mlp if isinstance(layer, nn.Linear)] == [
        (2048, 768),
        (2048, 2048),
        (256, 2048),
    ]
    assert head.last_layer.weight.shape == (8192, 256)
    assert "last_layer.bias" not in head.state_dict()


def test_reconstruction_is_a_transposed_convolution() -> None:
    head = ReconstructionHead(12, 32, 8)
    convolution = nn.ConvTranspose2d(8, 1, kernel_size=16, stride=16)
    with torch.no_grad():
        convolution.weight.copy_(head.pixels.weight.T.reshape(8, 1, 16, 16))
        convolution.bias.zero_()  # fresh pixels have a zero bias, too
    tokens = torch.randn(3 * 8, 12, generator=torch.Generator().manual_seed(0))
    picture = convolution(head.mlp(tokens).T.reshape(1, 8, 3, 8))[0, 0]
    patches = picture.unfold(0, 16, 16).unfold(1, 16, 16).reshape(-1, 256)
    assert (head(tokens) - patches).abs().max() <= 1e-6


def test_bf16() -> None:
    tokens = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    for make in HEADS:
        head = make(0)
        with torch.autocast("cpu", torch.bfloat16):
            assert (head(tokens).float() - head(tokens)).abs().max() == 0
        assert head.bfloat16()(tokens.bfloat16()).dtype == torch.bfloat16
