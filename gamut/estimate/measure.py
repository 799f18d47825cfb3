"""Rates of this machine's device, measured: what an account needs to tell time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from gamut.estimate.rates import MICRO, Rates

WIDE, TALL = 768, 4096  # of the products: a ViT-B's linear layers on a few packs
CPU_TALL = 1024
REPEATS = 7
SLOW = 0.5  # seconds of a call that is timed once: bf16 products take some CPUs a hundred times as long as fp32's


def measure(device: torch.device | None = None) -> Rates:
    """Of a GPU where there is one, else of the CPU with the threads that torch has. Takes some seconds."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    tall = TALL * 8 if gpu else CPU_TALL

    def seconds(work: Callable[[], Any], times: int = 4) -> float:
        """Of one call, the median of several tries. What it makes is kept until the try is over: in a step, too, each
        call writes to memory of its own, which costs a CPU more than some of the arithmetic."""

        def once(times: int = times) -> float:
            made: list[Any] = [None] * times
            if gpu:
                torch.cuda.synchronize()
            since = time.perf_counter()
            for number in range(times):
                made[number] = work()
            if gpu:
                torch.cuda.synchronize()
            return (time.perf_counter() - since) / times

        first = once(1)
        if first > SLOW:
            return first
        once()
        return statistics.median(once() for _ in range(REPEATS))

    def product(dtype: torch.dtype, tall: int = tall, wide: int = WIDE) -> float:
        x, w = (
            torch.randn(tall, wide, device=device, dtype=dtype),
            torch.randn(wide, 4 * wide, device=device, dtype=dtype),
        )
        return 2.0 * tall * wide * 4 * wide / seconds(lambda: torch.mm(x, w))

    numbers = (1 << 26) if gpu else (1 << 21)
    a, b = torch.randn(numbers, device=device), torch.randn(numbers, device=device)
    added = 3.0 * 4 * numbers / seconds(lambda: torch.add(a, b))
    small = torch.zeros(16, device=device)
    leaf = torch.zeros(16, device=device, requires_grad=True)
    call = seconds(lambda: torch.add(small, 1.0), 300)
    learned = seconds(lambda: torch.mul(leaf, 2.0), 300)
    attention = _attention(device, gpu, seconds)
    trained = torch.bfloat16 if gpu else torch.float32
    few, narrow = (TALL // 8 if gpu else CPU_TALL // 2), WIDE // 4
    half, single = product(torch.bfloat16), product(torch.float32)
    memory = float(torch.cuda.get_device_properties(device).total_memory) if gpu else _memory()
    return Rates(
        name=torch.cuda.get_device_name(device) if gpu else "cpu",
        kind=device.type,
        peak=half if gpu else max(half, single),
        half=half,
        single=single,
        attention=attention,
        bytes=added,
        memory=memory,
        link=300e9 if gpu else 1e10,
        network=40e9 if gpu else 1e9,
        call=max(call, learned),
        backward=max(call, learned),
        launch=2.5 * MICRO if gpu else 0.0,
        wait=25 * MICRO if gpu else 0.0,
        source=f"measured, {torch.get_num_threads()} threads" if not gpu else "measured; links assumed",
        small=(2.0 * few * narrow * 4 * narrow, product(trained, few, narrow) / (half if gpu else single)),
        calls=_calls(device, numbers, seconds),
    )


def _attention(device: torch.device, gpu: bool, seconds: Callable[..., float]) -> float:
    """FLOP/s of attention over 8 segments of 256 tokens, 12 heads of 64."""
    q = torch.randn(8, 12, 256, 64, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    return 4.0 * 8 * 12 * 256 * 256 * 64 / seconds(lambda: F.scaled_dot_product_attention(q, q, q))


def _calls(device: torch.device, numbers: int, seconds: Callable[..., float]) -> dict[str, float]:
    """bytes/s of calls that are not like an addition, as the account counts their bytes."""
    rows = numbers // 1024
    x = torch.randn(rows, 1024, device=device)
    spectra = torch.view_as_real(torch.polar(torch.ones_like(x), x))[..., 0]
    heads = torch.randn(rows * 4, 4, 64, device=device)
    rest = torch.rand(rows, 1024, device=device) + 1.0
    keys = torch.randint(1 << 40, (numbers,), device=device)
    weight, bias = torch.ones(1024, device=device), torch.zeros(1024, device=device)
    places = torch.randperm(rows, device=device)
    both, three = 8.0 * numbers, 12.0 * numbers
    normed = torch.native_layer_norm(x, [1024], weight, bias, 1e-6)
    probability = torch.softmax(x, -1)
    logarithm = torch.log_softmax(x, -1)
    aten = torch.ops.aten
    work: dict[str, tuple[float, Callable[[], Any]]] = {
        "gelu": (both, lambda: F.gelu(x)),
        "gelu_backward": (three, lambda: aten.gelu_backward(x, x)),
        "_softmax": (1.5 * both, lambda: torch.softmax(x, -1)),
        "_log_softmax": (1.5 * both, lambda: torch.log_softmax(x, -1)),
        "_softmax_backward_data": (three, lambda: aten._softmax_backward_data(x, probability, -1, torch.float32)),
        "_log_softmax_backward_data": (
            three,
            lambda: aten._log_softmax_backward_data(x, logarithm, -1, torch.float32),
        ),
        "native_layer_norm": (both, lambda: F.layer_norm(x, [1024], weight, bias)),
        "native_layer_norm_backward": (
            1.5 * three,
            lambda: aten.native_layer_norm_backward(
                x, x, [1024], normed[1], normed[2], weight, bias, [True, True, True]
            ),
        ),
        "sum": (both / 2, lambda: x.sum(0)),
        "log": (both, lambda: torch.log(rest)),
        "log_": (both, lambda: rest.log_().clamp_min_(1.0)),
        "sqrt": (both, lambda: torch.sqrt(rest)),
        "div": (both, lambda: x / 3.0),
        "exp": (both, lambda: torch.exp(x)),
        "index_select": (both, lambda: torch.index_select(x, 0, places)),
        "_to_copy": (both * 0.75, lambda: x.to(torch.bfloat16)),
        "copy_": (both, lambda: rest.copy_(x)),
        "mul": (three, lambda: x * x),
        "pow_": (both, lambda: spectra.square_()),
        "clone strided": (both, lambda: heads.transpose(0, 1).clone(memory_format=torch.contiguous_format)),
        "pow": (both, lambda: x.square()),
        "clone": (both, lambda: x.clone()),
        "cat": (both, lambda: torch.cat([x, x])),
        "bitwise_xor": (24.0 * numbers, lambda: keys ^ keys),
        "where": (three, lambda: torch.where(x > 0, x, 0.0)),
        "cumsum": (2 * both, lambda: torch.cumsum(x, 0)),
        "_fft_r2c": (2 * both, lambda: torch.fft.rfft(x)),
    }
    return {name: count / seconds(call) for name, (count, call) in work.items()}


def _memory() -> float:
    import os

    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
