"""What must hold on a GPU before its times are worth anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.gpu.parts import LeftOut, Row, Setting
from gamut.audio.logmel import log_mel
from gamut.models.attention import attention
from gamut.models.layout import layout
from gamut.models.vit import VisionTransformer
from gamut.recipe import schema

ROOT = Path(__file__).resolve().parents[2]
CUDA_TESTS = ("tests/models/test_cuda.py", "tests/pretrain/test_cuda.py")
SIZES = (16, 160, 160, 592, 2992, 48)


def within(what: str, found: float, most: float) -> Row:
    """Raises AssertionError where it is more."""
    assert found <= most, f"{what}: {found:.3g}, more than {most:g}"
    return Row(what, found, f"at most {most:g}")


def tests(setting: Setting) -> Iterator[Row]:
    """The project's tests that need a GPU; without one they skip."""
    try:
        import pytest  # noqa: F401
    except ImportError as error:
        raise LeftOut("pytest is not here") from error
    line = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *CUDA_TESTS]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    yield Row("CUDA tests", 0, "failures", note=done.stdout.strip().splitlines()[-1])


def attends(setting: Setting) -> Iterator[Row]:
    """Variable-length attention in bf16 beside a dense mask in fp32 (on a CPU the loop)."""
    where = layout(torch.tensor(SIZES, device=setting.device), SIZES, class_token=True)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, where.tokens, 4, 64, generator=generator).to(setting.device)
    kind = torch.bfloat16 if setting.gpu else torch.float32
    mine = [x.to(kind).requires_grad_() for x in qkv]
    dense = [x.detach().float().requires_grad_() for x in mine]
    found = attention(*mine, where, backend="varlen" if setting.gpu else "loop")
    known = attention(*dense, where, backend="dense")
    yield within("attention, difference to a dense mask", (found - known).abs().max().item(), 0.03)
    gradients = (torch.autograd.grad(out.float().square().sum(), of) for out, of in ((found, mine), (known, dense)))
    for name, a, b in zip("qkv", *gradients):
        yield within(f"gradient of {name}, to the largest", ((a - b).abs().max() / b.abs().max()).item(), 0.05)


def mels(setting: Setting) -> Iterator[Row]:
    """The log-mel on the device and on the CPU."""
    hop = torch.tensor([160, 160, 192, 160, 160, 640])
    frames = torch.tensor(SIZES)
    length = (frames - 1) * hop + 400
    offset = torch.nn.functional.pad(length.cumsum(0), (1, 0))
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randint(-9000, 9000, (int(offset[-1]),), generator=generator, dtype=torch.int16)
    here, there = (
        log_mel(*(x.to(device) for x in (waveform, offset, length, hop, frames)), SIZES).cpu()
        for device in (torch.device("cpu"), setting.device)
    )
    yield within("log-mel, mean difference to the CPU", (here - there).abs().mean().item(), 1e-5)


def packed(setting: Setting) -> Iterator[Row]:
    """Clips in one row, and each by itself: fp32, forward and the gradient of the input."""
    model = schema.Model(dim=96, depth=2, heads=3, table_frames=2992)
    vit = VisionTransformer(model, seed=1).to(setting.device).eval()
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(sum(SIZES) // 16 * 8, 256, generator=generator).to(setting.device)

    def run(sizes: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
        where = vit.layout(torch.tensor(sizes, device=setting.device), sizes)
        return vit.pool(vit(x, where), where)

    both = run(SIZES, patches)
    each = [run((size,), x) for size, x in zip(SIZES, patches.split([size // 16 * 8 for size in SIZES]))]
    alone = torch.cat(each)
    yield within("packed and alone, to the largest", ((both - alone).abs().max() / alone.abs().max()).item(), 1e-4)


def precisions(setting: Setting) -> Iterator[Row]:
    """The loss of one micro-batch in bf16 and in fp32."""
    from bench.gpu.steps import loss_of, small

    for case in small(setting):
        full, half = (loss_of(case.also(f"precision={kind}"), setting) for kind in ("fp32", "bf16"))
        yield within(f"{case.name}: loss in bf16 to fp32", abs(half / full - 1), 0.02)


def determinism(setting: Setting) -> Iterator[Row]:
    """With deterministic kernels two steps have the same bits; without them it runs, and is as good."""
    from bench.gpu.steps import loss_of, small

    for case in small(setting):
        on = [loss_of(case.also("run.deterministic=true"), setting, steps=3) for _ in range(2)]
        yield within(f"{case.name}: deterministic, difference of two runs", abs(on[0] - on[1]), 0.0)
        off = loss_of(case.also("run.deterministic=false"), setting, steps=3)
        yield within(f"{case.name}: loss not deterministic to deterministic", abs(off / on[0] - 1), 1e-2)
