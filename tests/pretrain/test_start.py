"""Pretraining that starts from a ViT of images: student and teacher have its backbone, the heads are their own."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from tests.asit import NOW, objective
from tests.packs import packed


def test_student_and_teacher_start_from_an_image_s_vit(tmp_path: Path) -> None:
    task, untouched = objective(), objective()
    model = task.model.backbone.model
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(
        embed_dim=model.dim, depth=model.depth, num_heads=model.heads, num_classes=7, mlp_ratio=model.mlp_ratio
    )
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    said = str(task.start_from(str(tmp_path / "vit.safetensors")))
    assert f"positions of 14x14 to {model.table_frames // 16}x8" in said
    assert "left out head (2 tensors)" in said
    for network in (task.model, task.teacher):
        state = network.state_dict()
        kernel = vit.patch_embed.proj.weight.detach().sum(1).flatten(1)
        assert torch.allclose(state["backbone.patch_embed.proj.weight"], kernel, atol=1e-6)
        assert torch.equal(state["backbone.blocks.0.attn.qkv.weight"], vit.blocks[0].attn.qkv.weight)
        for name, tensor in untouched.model.state_dict().items():
            if not name.startswith("backbone."):
                assert torch.equal(state[name], tensor), name
    prepared = task.prepare(packed([96, 96], views=2), NOW)
    totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
    loss, _ = task.loss(task.model, prepared, totals, NOW)
    loss.backward()
    assert torch.isfinite(loss)
    assert task.model.backbone.patch_embed.proj.weight.grad is not None
