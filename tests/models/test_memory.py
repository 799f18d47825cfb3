"""Memory grows with the tokens of a row, not with their square."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gamut.models.attention import attention
from gamut.models.classifier import ClassifierNetwork
from gamut.models.layout import layout
from gamut.recipe import schema

MODEL = schema.Model(
    dim=48, depth=2, heads=3, positions="factorised", pooling="attention", pooling_heads=4, table_frames=256
)


def peak(run) -> int:
    """The most bytes allocated at a time during forward and backward, beyond what was there before."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert most
    return most


def rows(clips: int) -> tuple[int, ...]:
    return (256,) * clips  # frames: 128 patches each


def attend(clips: int, backend: str) -> int:
    where = layout(torch.tensor(rows(clips)), rows(clips), class_token=False)
    q, k, v = (torch.randn(where.tokens, 3, 16).requires_grad_() for _ in range(3))
    return peak(lambda: attention(q, k, v, where, backend=backend).sum().backward())


def test_attention_in_clips_takes_memory_by_the_token_and_a_dense_mask_by_its_square() -> None:
    four, eight, sixteen = (attend(clips, "loop") for clips in (4, 8, 16))
    assert sixteen / eight <= 2.1
    assert eight / four <= 2.1
    assert attend(16, "dense") / attend(8, "dense") >= 3.0


@pytest.mark.parametrize("apart", [False, True], ids=["one run", "odd lengths"])
def test_a_classifiers_step_takes_memory_by_the_token(apart: bool) -> None:
    network = ClassifierNetwork(MODEL, 5, seed=0)

    def step(clips: int) -> int:
        sizes = rows(clips) if not apart else tuple(256 + 16 * (-1) ** n for n in range(clips))
        where = network.backbone.layout(torch.tensor(sizes), sizes)
        patches = torch.randn(where.tokens, 256)

        def run() -> None:
            network.zero_grad(set_to_none=True)
            network(patches, where, None).sum().backward()

        return peak(run)

    four, sixteen = step(4), step(16)
    assert sixteen / four <= 4.2
    held: list[int] = []
    for clips in (4, 16):
        sizes, kept = rows(clips), 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        where = network.backbone.layout(torch.tensor(sizes), sizes)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(where.tokens, 256), where, None)
        held.append(kept)
    assert held[1] / held[0] <= 4.0  # what backward needs: tokens, and weights that do not grow
