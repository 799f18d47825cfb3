"""Pretraining that starts from a ViT of images: student and teacher have its backbone, the heads are their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from gamut.models.vit import VisionTransformer
from gamut.models.weights import save_weights
from gamut.recipe import schema
from gamut.shards.__main__ import main as shards
from gamut.track.metrics import History
from gamut.train.world import World
from launchers.corpus import synthesise
from pretrain.run import main
from tests.asit import NOW, objective
from tests.close import assert_close
from tests.packs import packed
from tests.train.ranks import run


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
        assert_close(state["backbone.patch_embed.proj.weight"], kernel, 1e-6)
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


def pretraining(world: World, line: list[str]) -> int:
    return main(line)


def test_a_run_goes_on_without_the_file_that_it_began_with(tmp_path: Path) -> None:
    """And does not probe a network that never was as one before training."""
    init, folder = tmp_path / "vit.safetensors", tmp_path / "run"
    synthesise(tmp_path / "corpus", 30, seconds=0.5)
    assert shards(["convert", "esc50", str(tmp_path / "corpus"), str(tmp_path / "shards")]) == 0
    model = schema.Model(dim=16, depth=1, heads=2, table_frames=96)
    save_weights(init, VisionTransformer(model, seed=5), {})
    line = ["demo", f"data={tmp_path / 'shards'}", f"init={init}", f"run.folder={tmp_path}", "run.name=run", "epochs=1"]
    line += ["model.dim=16", "model.depth=1", "model.heads=2", "model.table_frames=96", "views.frames=48"]
    line += ["front.mean=0", "front.std=1", "step.packs=2", "loader.workers=0", "run.threads=1", "track.mlflow=off"]
    line += ["asit.hidden=16", "asit.bottleneck=8", "asit.prototypes=16", "track.picture_epochs=0"]
    assert run(1, pretraining, [*line, "probe.every_epochs=0"]) == [0]
    init.unlink()
    assert run(1, pretraining, [*line, "probe.every_epochs=1"]) == [0]
    assert not [name for name in History.read(folder / "metrics.jsonl").points if name.startswith("probe/")]
    shutil.rmtree(folder)
    assert run(1, pretraining, [*line, "probe.every_epochs=0"]) == [2]  # from the beginning it is needed
