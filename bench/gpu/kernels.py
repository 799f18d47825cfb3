"""Parts of a step by themselves: attention, log-mel."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.gpu.parts import Row, Setting
from gamut.audio.logmel import log_mel
from gamut.models.attention import attention
from gamut.models.layout import layout

HEADS, WIDTH = 12, 64


def attends(setting: Setting) -> Iterator[Row]:
    """Rows of clips of 296 tokens and of 96 to 496, forward and backward, beside a dense block-diagonal mask."""
    clips = 2 if setting.tiny else 64
    ways = {"gamut": "varlen" if setting.gpu else "loop", "dense mask": "dense"}
    for title, pattern in (("clips alike", (592,)), ("clips of all lengths", (192, 992, 480, 752, 336, 656, 544, 880))):
        sizes = tuple(pattern[number % len(pattern)] for number in range(clips))
        where = layout(torch.tensor(sizes, device=setting.device), sizes, class_token=False)
        kind = torch.bfloat16 if setting.gpu else torch.float32
        shape = (3, where.tokens, HEADS, WIDTH)
        qkv = torch.randn(shape, device=setting.device, dtype=kind, requires_grad=True)
        pairs = sum(length**2 for length in where.lengths)
        weight = torch.randn(shape[1:], device=setting.device, dtype=kind)
        for name, way in ways.items():
            if name == "dense mask" and where.tokens > 20_000:  # its mask alone is the square
                some = sizes[:8]
                part = layout(torch.tensor(some, device=setting.device), some, class_token=False)
            else:
                part = where
            own, own_pairs = qkv[:, : part.tokens], sum(length**2 for length in part.lengths)

            def forward(own: torch.Tensor = own, part: object = part, way: str = way) -> torch.Tensor:
                return attention(*own.unbind(0), part, backend=way)  # type: ignore[arg-type]

            def both(weight: torch.Tensor = weight[: part.tokens]) -> None:
                torch.autograd.grad(forward(), qkv, weight)  # noqa: B023

            for what, run, passes in (("forward", forward, 4), ("forward + backward", both, 14)):
                rate = passes * own_pairs * HEADS * WIDTH / setting.seconds(run) / 1e12
                yield Row(
                    f"attention, {title}, {name}, {what}",
                    rate,
                    "TFLOP/s",
                    part.tokens,
                    note=f"{own_pairs / pairs:.0%} of the pairs",
                )


def mels(setting: Setting) -> Iterator[Row]:
    """Clips of 10 s at a hop of 10 ms."""
    clips = 2 if setting.tiny else 256
    samples, frames = 160_000, 992
    count = torch.full((clips,), samples)
    given = (
        torch.randint(-999, 999, (clips * samples,), dtype=torch.int16),
        torch.arange(clips + 1) * samples,
        count,
        torch.full((clips,), 160),
        torch.full((clips,), frames),
    )
    there = [x.to(setting.device) for x in given]
    seconds = setting.seconds(lambda: log_mel(*there, (frames,) * clips))  # type: ignore[arg-type]
    yield Row("log-mel of 10 s", clips / seconds, "clips/s", clips * frames // 2)
