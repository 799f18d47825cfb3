"""A vector a frame, and from the frames' logits to the clip's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gamut.models.classifier import ClassifierNetwork
from gamut.models.layout import drop_tokens
from gamut.models.pooling import column_means, linear_softmax
from gamut.recipe import schema
from tests.close import assert_close

MODEL = schema.Model(dim=32, depth=2, heads=2, positions="factorised", pooling="frames", table_frames=96, drop_path=0.0)


@given(st.lists(st.lists(st.floats(-8, 8), min_size=1, max_size=6), min_size=1, max_size=4))
def test_linear_softmax_is_its_formula(clips: list[list[float]]) -> None:
    frames = torch.tensor([x for clip in clips for x in clip])[:, None].requires_grad_()
    found = linear_softmax(frames, torch.tensor([len(clip) for clip in clips]))
    found.sum().backward()
    plain = torch.tensor([x for clip in clips for x in clip], dtype=torch.float64).requires_grad_()
    parts = [part.sigmoid() for part in plain.split([len(clip) for clip in clips])]
    wanted = torch.stack([((p**2).sum() / p.sum()).logit() for p in parts])
    wanted.sum().backward()
    for mine, theirs in ((found, wanted), (frames.grad, plain.grad)):
        assert (mine[:, 0].double() - theirs).abs().max() <= 1e-4 * max(1.0, float(theirs.detach().abs().max()))


def test_linear_softmax_is_finite_where_every_frame_is_sure() -> None:
    frames = torch.tensor([[-200.0], [-199.0], [200.0], [199.0]], requires_grad=True)
    found = linear_softmax(frames, torch.tensor([2, 2]))
    p = torch.tensor([-200.0, -199.0]).double().exp()  # sigmoid, there
    assert_close(found[0, 0].double(), ((p**2).sum() / p.sum()).log(), 1e-6)
    assert found[1, 0] > 190
    found.sum().backward()
    assert torch.isfinite(frames.grad).all()


def test_frames_are_means_over_frequency_in_order_of_time() -> None:
    network = ClassifierNetwork(MODEL, 3, seed=0)
    frames = torch.tensor([32, 48])
    where = network.backbone.layout(frames, (32, 48))
    tokens = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    found = column_means(tokens, where)
    assert found.shape == (5, 32)
    for column in range(5):
        assert_close(found[column], tokens[8 * column : 8 * column + 8].mean(0))
    kept = drop_tokens((torch.arange(2),), frames, (32, 48), 0.25)
    dropped = network.backbone.layout(frames, (32, 48), kept)
    with pytest.raises(ValueError, match="dropped"):
        column_means(tokens[: dropped.tokens], dropped)


def test_a_clip_s_frames_do_not_depend_on_its_neighbours() -> None:
    network = ClassifierNetwork(MODEL, 3, seed=0).eval().double()
    patches = torch.randn(88, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = (48, 16, 112)
    where = network.backbone.layout(torch.tensor(sizes), sizes)
    together, clips = network(patches, where, None, True), network(patches, where, None)
    assert together.shape == (11, 3)
    begin = 0
    for number, size in enumerate(sizes):
        alone = network.backbone.layout(torch.tensor([size]), (size,))
        own = patches[begin * 8 : begin * 8 + size // 2]
        assert_close(network(own, alone, None, True), together[begin : begin + size // 16], 1e-12)
        assert_close(network(own, alone, None)[0], clips[number], 1e-12)
        begin += size // 16


def test_no_clip_has_no_frames() -> None:
    network = ClassifierNetwork(MODEL, 3, seed=0)
    where = network.backbone.layout(torch.zeros(0, dtype=torch.int64), ())
    assert network(torch.zeros(0, 256), where, None, True).shape == (0, 3)
    nothing = network(torch.zeros(0, 256), where, None)
    assert nothing.shape == (0, 3)
    (nothing.sum() * 0).backward()
