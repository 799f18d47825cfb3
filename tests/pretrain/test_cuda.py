"""On a GPU masks are drawn without waiting for it, bit for bit as on the CPU. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gamut.models.layout import layout
from gamut.randomness import key_torch
from gamut.recipe import schema
from pretrain.masking import Hidden, hide

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SIZES = (592, 592, 96, 96, 16, 16, 288, 288, 592, 592)
VARIANTS = (
    {},
    {"mask_aligned": True, "mask_shape": "time"},
    {"mask_fill": "noise"},
    {"mask_fill": "clip", "mask_shape": "frequency"},
    {"mask_target_least": 0.5, "mask_copied": 0.5},
)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_masks_and_fills_are_those_of_the_cpu_and_nothing_waits(options: dict[str, object]) -> None:
    asit = replace(schema.Asit(), **options)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(sum(SIZES) // 16 * 8, 256, generator=generator)

    def run(device: str, watched: bool = False) -> Hidden:
        frames = torch.tensor(SIZES, device=device)
        keys = key_torch(5, torch.arange(len(SIZES))).to(device)
        own, where = clean.to(device), layout(frames, SIZES, class_token=True)
        if watched:
            torch.cuda.set_sync_debug_mode("error")
        try:
            return hide(own, where, frames, SIZES, keys, 2, (3, 2), asit)
        finally:
            if watched:
                torch.cuda.set_sync_debug_mode("default")

    run("cuda")  # the context is made, and the kernels are loaded
    here, there = run("cpu"), run("cuda", watched=True)
    assert torch.equal(there.masks.pixels.cpu(), here.masks.pixels)
    assert torch.equal(there.masks.patches.cpu(), here.masks.patches)
    assert (there.patches.cpu() - here.patches).abs().max() <= 1e-5
    assert there.alone.item() == here.alone.item()
