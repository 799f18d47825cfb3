"""A ViT of images, as timm or transformers saved it, gives here what it gave there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gamut.errors import CheckpointError
from gamut.models.layout import layout
from gamut.models.vit import VisionTransformer
from gamut.models.weights import load_backbone
from gamut.recipe import schema
from tests.models.old_names import OLD

MODEL = schema.Model(dim=24, depth=2, heads=2, table_frames=128, drop_path=0.0)  # 8 columns of 8 patches: a square
HALF = dataclasses.replace(MODEL, table_frames=80)


def image_model(side: int = 128, seed: int = 0, **more: object) -> timm.models.VisionTransformer:
    """A small ViT whose weights are all random, biases and norms too."""
    torch.manual_seed(seed)
    model = timm.models.VisionTransformer(
        img_size=side, embed_dim=24, depth=2, num_heads=2, num_classes=5, weight_init="skip", **more
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def sound(frames: int) -> torch.Tensor:
    return torch.randn(frames, 128, generator=torch.Generator().manual_seed(1))


def ours(vit: VisionTransformer, frames: torch.Tensor) -> torch.Tensor:
    """Tokens [1 + patches, dim] of log-mel frames [T, 128]."""
    patches = frames.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).transpose(1, 2).reshape(-1, 256)
    where = layout(torch.tensor([len(frames)]), (len(frames),), class_token=vit.class_token)
    with torch.no_grad():
        return vit.eval()(patches, where)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint"])
def test_timm_equals_itself(tmp_path: Path, kind: str) -> None:
    model = image_model()
    path = tmp_path / f"vit.{'pth' if kind == 'checkpoint' else kind}"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    elif kind == "pth":
        torch.save(model.state_dict(), path)
    else:  # a self-supervised run: two models, arguments, an optimiser
        teacher = {f"module.backbone.{name}": tensor for name, tensor in model.state_dict().items()}
        student = {name: torch.zeros_like(tensor) for name, tensor in teacher.items()}
        optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
        whole = {"teacher": teacher, "student": student, "optimizer": optimizer, "epoch": 7}
        torch.save(whole | {"args": argparse.Namespace(arch="vit", lr=0.1)}, path)
    vit = VisionTransformer(MODEL, seed=2)
    loaded = load_backbone(vit, path)
    frames = sound(128)
    with torch.no_grad():
        expected = model.forward_features(frames.expand(1, 3, -1, -1))[0]  # the sound in all three colours
    close(ours(vit, frames), expected)
    prefix = "teacher.module.backbone." if kind == "checkpoint" else ""
    assert loaded.prefix == prefix
    assert {f"{prefix}head.weight", f"{prefix}head.bias"} <= set(loaded.dropped)
    assert "3 colours summed, positions of 8x8 to 8x8" in str(loaded)
    assert "head (2 tensors)" in str(loaded)


def hugging_face(folder: Path, **more: object) -> torch.nn.Module:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    model = ViTModel(ViTConfig(**sizes, image_size=128, layer_norm_eps=1e-6, **more)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def renamed(state: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    for new, old in names.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


def test_transformers_equals_itself(tmp_path: Path) -> None:
    model = hugging_face(tmp_path)
    frames = sound(128)
    with torch.no_grad():
        expected = model(frames.expand(1, 3, -1, -1)).last_hidden_state[0]
    state = load_file(tmp_path / "model.safetensors")
    if any(".q_proj" in name for name in state):
        new, old = state, renamed(state, OLD)
    else:
        new, old = renamed(state, {value: key for key, value in OLD.items()}), state
    files = {"new.safetensors": new, "old.safetensors": {f"vit.{name}": tensor for name, tensor in old.items()}}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    torch.save(old, tmp_path / "pytorch_model.bin")
    for init in (tmp_path, *(tmp_path / name for name in (*files, "pytorch_model.bin"))):
        vit = VisionTransformer(MODEL, seed=2)
        loaded = load_backbone(vit, init)
        close(ours(vit, frames), expected)
        assert [name.removeprefix(loaded.prefix) for name in loaded.dropped] == [
            "pooler.dense.bias",
            "pooler.dense.weight",
        ]
    os.remove(tmp_path / "model.safetensors")
    assert load_backbone(VisionTransformer(MODEL), tmp_path).path == tmp_path / "pytorch_model.bin"

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    with pytest.raises(CheckpointError, match="num_attention_heads = 3, and this model has 2"):
        load_backbone(VisionTransformer(MODEL), tmp_path)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_positions_are_interpolated_as_torch_does(tmp_path: Path, pooling: str) -> None:
    model = image_model(side=224)  # 14x14, as ImageNet's
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    vit = VisionTransformer(dataclasses.replace(HALF, pooling=pooling), seed=2)
    loaded = load_backbone(vit, tmp_path / "vit.safetensors")
    assert "positions of 14x14 to 5x8" in str(loaded)
    special, grid = model.pos_embed.detach().split([1, 196], dim=1)
    image = grid.unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(5, 8), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    if pooling == "cls":
        expected = torch.cat([special, expected], dim=1)
        assert torch.equal(vit.cls_token, model.cls_token)
    else:
        assert "cls_token" in loaded.dropped
    close(vit.pos_embed, expected)


def test_factorised_tables_are_means_over_the_other_axis(tmp_path: Path) -> None:
    """ElasticAST: rows of the image are frequencies, the middle 8 of 14; kernels are turned to (time, frequency)."""
    model = image_model(side=224)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    vit = VisionTransformer(dataclasses.replace(HALF, positions="factorised", pooling="attention", pooling_heads=2))
    loaded = load_backbone(vit, tmp_path / "vit.safetensors")
    middle = model.pos_embed.detach()[:, 1:].unflatten(1, (14, 14))[:, 3:11].permute(0, 3, 1, 2)
    table = F.interpolate(middle, size=(8, 5), mode="bilinear", align_corners=False)[0]
    close(vit.pos_embed_freq, table.mean(2).T)
    close(vit.pos_embed_time, table.mean(1).T)
    kernel = model.patch_embed.proj.weight.detach().sum(1)
    close(vit.patch_embed.proj.weight[:, 16 * 3 + 5], kernel[:, 5, 3])  # time 3, frequency 5
    assert set(loaded.dropped) == {"cls_token", "head.weight", "head.bias"}


def test_a_distillation_token_is_left_out_with_its_position(tmp_path: Path) -> None:
    state = image_model().state_dict()
    extra = torch.full((1, 1, 24), 9.0)
    positions = torch.cat([state["pos_embed"][:, :1], extra, state["pos_embed"][:, 1:]], dim=1)
    save_file(state | {"pos_embed": positions, "dist_token": extra}, tmp_path / "deit.safetensors")
    vit = VisionTransformer(MODEL)
    assert "dist_token" in load_backbone(vit, tmp_path / "deit.safetensors").dropped
    assert torch.equal(vit.pos_embed, state["pos_embed"])


def test_positions_of_patches_alone_leave_the_class_token_without(tmp_path: Path) -> None:
    model = image_model(no_embed_class=True)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    vit = VisionTransformer(MODEL)
    load_backbone(vit, tmp_path / "vit.safetensors")
    frames = sound(128)
    with torch.no_grad():
        close(ours(vit, frames), model.forward_features(frames.expand(1, 3, -1, -1))[0])


class Code:
    def __reduce__(self) -> tuple:
        return os.system, ("touch tampered",)


def refusals() -> dict[str, tuple[dict, str]]:
    plain = image_model().state_dict()
    return {
        "patches": (image_model(patch_size=32).state_dict(), "patches of 32x32, this model's are 16x16"),
        "positions": (plain | {"pos_embed": torch.zeros(1, 41, 24)}, "41 positions, 1 of them of special tokens"),
        "scale": (
            image_model(init_values=0.1).state_dict(),
            r"has a tensor blocks\.0\.ls1\.gamma that this model lacks",
        ),
        "code": ({"model": plain, "hook": Code()}, "something other than tensors and is not loaded"),
        "two": ({"a": plain, "b": plain}, r"those of a\., b\..* with one vision transformer in it"),
        "none": ({"weight": torch.ones(1)}, "it has none"),
    }


@pytest.mark.parametrize("case", ["patches", "positions", "scale", "code", "two", "none"])
def test_what_does_not_fit_is_said_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = refusals()[case]
    torch.save(content, tmp_path / "vit.pth")
    vit = VisionTransformer(MODEL, seed=2)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    with pytest.raises(CheckpointError, match=said):
        load_backbone(vit, tmp_path / "vit.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())
    assert not (tmp_path / "tampered").exists()


def test_a_block_of_another_kind_is_missed(tmp_path: Path) -> None:
    """What transformers' relatives have in a block (BEiT's lambda_1) does not vanish without a word."""
    names = {
        "vit.embeddings.patch_embeddings.projection.weight": torch.zeros(24, 3, 16, 16),
        "vit.encoder.layer.0.lambda_1": torch.ones(24),
    }
    state = {f"vit.{name}": tensor for name, tensor in VisionTransformer(MODEL).state_dict().items()}
    del state["vit.patch_embed.proj.weight"]
    save_file(state | names, tmp_path / "beit.safetensors")
    with pytest.raises(CheckpointError, match=r"has a tensor vit\.blocks\.0\.lambda_1 that this model lacks"):
        load_backbone(VisionTransformer(dataclasses.replace(MODEL, table_frames=128)), tmp_path / "beit.safetensors")
