"""The same numbers on a GPU, without waiting for it. Skipped where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._triton import has_triton

from gamut.audio.augment import random_noise, spec_augment
from gamut.audio.logmel import log_mel, normalise, patches
from gamut.models.attention import attention, pooling_attention
from gamut.models.layout import layout
from gamut.models.vit import VisionTransformer
from gamut.randomness import key_torch
from gamut.recipe import schema

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SIZES = (16, 160, 160, 2992, 48)
CUDA = torch.device("cuda")


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("one_query", [False, True])
def test_varlen_equals_the_loop(one_query: bool) -> None:
    where = layout(torch.tensor(SIZES, device=CUDA), SIZES, class_token=True)
    generator = torch.Generator().manual_seed(0)
    rows = (where.segments if one_query else where.tokens, where.tokens, where.tokens)
    half = [torch.randn(n, 3, 64, generator=generator).bfloat16().to(CUDA).requires_grad_() for n in rows]
    full = [tensor.detach().float().requires_grad_() for tensor in half]
    function = pooling_attention if one_query else attention
    fast = function(*half, where, backend="varlen")
    slow = function(*full, where, backend="loop")
    assert (fast - slow).abs().max() <= 0.03
    mine, theirs = (
        torch.autograd.grad(x.float().square().sum(), tensors) for x, tensors in ((fast, half), (slow, full))
    )
    for a, b in zip(mine, theirs):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


@pytest.mark.parametrize("compiled", [False, True])
def test_front_end_and_model_do_not_wait_and_agree_with_the_cpu(compiled: bool) -> None:
    if compiled and not has_triton():
        pytest.skip("no compiler for this GPU")
    model = schema.Model(dim=96, depth=2, heads=3, table_frames=160, drop_path=0.2)
    frames, hops = torch.tensor(SIZES), torch.tensor([160, 192, 160, 160, 640])
    length = (frames - 1) * hops + 400
    offset = torch.nn.functional.pad(length.cumsum(0), (1, 0))
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randint(-9000, 9000, (int(offset[-1]),), generator=generator, dtype=torch.int16)
    clip_id = torch.arange(len(SIZES))

    def run(device: torch.device, vit: VisionTransformer, watched: bool = False) -> tuple[torch.Tensor, ...]:
        given = [x.to(device, non_blocking=True) for x in (waveform, offset, length, hops, frames, clip_id)]
        torch.cuda.synchronize()
        keys = (0, 0, given[5])
        with no_waiting():
            mel = log_mel(*given[:5], SIZES, compiled=compiled)
            noisy = random_noise(normalise(mel, -4.0, 4.0, compiled and mel.is_cuda), given[4], SIZES, keys)
            masked = spec_augment(noisy, given[4], SIZES, keys, 48, 24)
            where = layout(given[4], SIZES, class_token=True)
            tokens = vit(patches(masked), where, key_torch(*keys, device=device))
            pooled = vit.pool(tokens, where)
        pooled.sum().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in vit.parameters())
        return mel.cpu(), noisy.cpu(), masked.cpu(), tokens.detach().cpu()

    model = dataclasses.replace(model, table_frames=2992)  # a longer clip would copy a few bytes to the device
    vit = VisionTransformer(model, seed=1).train()
    on_cpu = run(torch.device("cpu"), vit)
    run(CUDA, vit.to(CUDA))  # caches are filled, plans of transforms made
    vit.zero_grad()
    on_gpu = run(CUDA, vit, watched=True)
    # Another Fourier transform: a bin with next to no energy differs in its logarithm, the rest does not.
    assert (on_cpu[0] - on_gpu[0]).abs().mean() <= 1e-5
    assert torch.equal(on_cpu[2] == 0.0, on_gpu[2] == 0.0)
    for mine, theirs in zip(on_cpu[1:], on_gpu[1:]):
        assert (mine - theirs).abs().max() <= 0.02


def test_a_model_under_autocast_takes_the_kernel_and_agrees_with_itself_in_fp32() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the kernel is for Ampere and later")
    model = schema.Model(dim=96, depth=2, heads=3, table_frames=160, pooling="attention", pooling_heads=3)
    vit = VisionTransformer(model, seed=1).to(CUDA)
    where = layout(torch.tensor(SIZES, device=CUDA), SIZES, class_token=False)
    patches_of_noise = torch.randn(where.tokens, 256, generator=torch.Generator().manual_seed(0)).to(CUDA)
    slow = vit.pool(vit(patches_of_noise, where), where)
    with torch.autocast("cuda", torch.bfloat16):
        fast = vit.pool(vit(patches_of_noise, where), where)
    assert (fast.float() - slow).abs().max() <= 0.05 * slow.abs().max()
    fast.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vit.parameters())
