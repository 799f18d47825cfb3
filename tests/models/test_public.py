"""Public checkpoints under their own key names give here what they give in a model written after their papers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gamut.audio.logmel import cut
from gamut.errors import CheckpointError
from gamut.models.classifier import ClassifierNetwork
from gamut.models.vit import VisionTransformer
from gamut.models.weights import load_backbone, load_classifier
from gamut.recipe import schema
from tests.close import assert_close
from tests.models.elastic_reference import ElasticReference
from tests.models.old_names import OLD

CLASSES = 5
ELASTIC = schema.Model(
    dim=24, depth=2, heads=2, positions="factorised", pooling="attention", pooling_heads=12, attention_scale=1.0,
    table_frames=192, drop_path=0.0,
)  # fmt: skip
AST = schema.Model(
    dim=24,
    depth=2,
    heads=2,
    table_frames=128,
    distilled=True,
    stride=10,
    table_like="ast",
    drop_path=0.0,
    head_eps=1e-5,
)


def filled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All of its weights random, biases and norms too; its logits are then of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return module.eval()


def sounds(*frames: int) -> list[torch.Tensor]:
    """Normalised log-mels [frames, 128]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 128, generator=generator) for length in frames]


def ours(network: ClassifierNetwork, mels: list[torch.Tensor]) -> torch.Tensor:
    """Logits [clips, classes], all clips in one pack."""
    sizes = tuple(len(mel) for mel in mels)
    frames = torch.tensor(sizes)
    patches = cut(torch.cat(mels), frames, sizes, network.backbone.model.stride)
    return network.eval()(patches, network.backbone.layout(frames, sizes), None)


def loaded(model: schema.Model, path: Path, seed: int = 3) -> ClassifierNetwork:
    network = ClassifierNetwork(model, CLASSES, seed)
    assert str(load_classifier(network, path)).startswith(f"backbone and classifier from {path}")
    return network


def saved(state: dict[str, torch.Tensor], folder: Path, prefix: str = "module.", kind: str = "pth") -> Path:
    state = {prefix + name: tensor.detach().clone() for name, tensor in state.items()}
    path = folder / f"public.{kind}"
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    return path


# ElasticAST ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, None])
@pytest.mark.parametrize("bias", [True, False])
def test_elastic_ast_gives_its_numbers(tmp_path: Path, scale: float | None, bias: bool) -> None:
    """Padded rows and dense masks there, one pack here: the same logits, the same gradients."""
    reference = filled(ElasticReference(24, 2, 2, 12, CLASSES, 12**-0.5 if scale is None else scale, bias))
    if scale is None:
        reference.attn_pool.scale = 2**-0.5  # 24 dimensions over 12 heads
    network = loaded(dataclasses.replace(ELASTIC, attention_scale=scale), saved(reference.state_dict(), tmp_path))
    mels = sounds(16, 96, 160, 48, 192)
    expected = reference([[mels[0].T, mels[1].T, mels[2].T], [mels[3].T, mels[4].T]])
    got = ours(network, mels)
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    assert (got - got.mean(0)).abs().max() > 0.01  # the clips are told apart
    weight = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(2))
    mine = torch.autograd.grad((got * weight).sum(), [network.backbone.pos_embed_time, network.backbone.norm.weight])
    theirs = torch.autograd.grad((expected * weight).sum(), [reference.pos_embed_time, reference.norm.weight])
    for a, b in zip(mine, theirs):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


def test_elastic_ast_is_a_start_for_fine_tuning_on_longer_clips(tmp_path: Path) -> None:
    reference = filled(ElasticReference(24, 2, 2, 12, CLASSES))
    path = saved(reference.state_dict(), tmp_path)
    vit = VisionTransformer(dataclasses.replace(ELASTIC, table_frames=384))
    start = load_backbone(vit, path)
    assert (start.prefix, start.resized, start.fresh) == ("module.backbone.", ("pos_embed_time",), ())
    assert all(name.startswith("module.head.") for name in start.dropped)
    stretched = F.interpolate(reference.pos_embed_time.T[None], size=24, mode="linear", align_corners=False)[0].T
    assert_close(vit.pos_embed_time, stretched)
    assert torch.equal(vit.attn_pool.query[0], reference.attn_pool_queries)


def test_what_elastic_ast_has_besides_is_missed(tmp_path: Path) -> None:
    state = dict(filled(ElasticReference(24, 2, 2, 12, CLASSES)).state_dict())
    more = saved(state | {"blocks.modules_list.0.attn.q_norm.gamma": torch.ones(24)}, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"module\.backbone\.blocks\.0\.attn\.q_norm\.gamma that this model lacks"
    ):
        load_backbone(VisionTransformer(ELASTIC), more)


# AST ----------------------------------------------------------------------------------------------------------------


class AstReference(torch.nn.Module):
    """AST by its own names: DeiT's blocks from timm behind `v`, patches 10 apart in frequency and time."""

    def __init__(self, frames: int = 128, stride: int = 10) -> None:
        super().__init__()
        self.stride = stride
        self.v = timm.models.deit.VisionTransformerDistilled(
            img_size=128, in_chans=1, embed_dim=24, depth=2, num_heads=2, num_classes=7
        )
        self.cells = ((128 - 16) // stride + 1, (frames - 16) // stride + 1)
        self.v.pos_embed = torch.nn.Parameter(torch.zeros(1, 2 + self.cells[0] * self.cells[1], 24))
        self.mlp_head = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, CLASSES))

    def forward(self, mels: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of log-mels [B, frames, 128]."""
        kernel = self.v.patch_embed.proj
        x = F.conv2d(mels.transpose(1, 2)[:, None], kernel.weight, kernel.bias, self.stride)
        x = x.flatten(2).transpose(1, 2)
        leading = [token.expand(len(x), -1, -1) for token in (self.v.cls_token, self.v.dist_token)]
        x = torch.cat([*leading, x], dim=1) + (self.v.pos_embed if positions is None else positions)
        x = self.v.norm(self.v.blocks(x))
        return self.mlp_head((x[:, 0] + x[:, 1]) / 2)


@pytest.mark.parametrize(("stride", "frames"), [(10, 128), (16, 128), (10, 96)])
def test_ast_under_its_own_names_gives_its_numbers(tmp_path: Path, stride: int, frames: int) -> None:
    reference = filled(AstReference(frames, stride))
    model = dataclasses.replace(AST, stride=stride, table_frames=frames)
    network = loaded(model, saved(reference.state_dict(), tmp_path))
    mels = sounds(frames, frames, frames)
    expected = reference(torch.stack(mels))
    assert (ours(network, mels) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    start = load_backbone(VisionTransformer(model), tmp_path / "public.pth")
    assert start.prefix == "module.v."
    assert "kernels of (frequency, time) turned" in str(start)
    assert {name.split(".")[1] for name in start.dropped} == {"v", "head"}  # DeiT's two heads, and the classifier


@pytest.mark.parametrize("frames", [64, 96, 256])
def test_ast_off_its_length_takes_the_middle_of_its_table_or_stretches_it(tmp_path: Path, frames: int) -> None:
    reference = filled(AstReference())
    network = loaded(AST, saved(reference.state_dict(), tmp_path))
    columns = (frames - 16) // 10 + 1
    special, grid = reference.v.pos_embed.split([2, 144], dim=1)
    grid = grid.transpose(1, 2).unflatten(2, (12, 12))  # frequency, time
    first = 6 - columns // 2
    if columns <= 12:
        grid = grid[..., first : first + columns]
    else:
        grid = F.interpolate(grid, size=(12, columns), mode="bilinear", align_corners=False)
    mels = sounds(frames, frames)
    expected = reference(torch.stack(mels), torch.cat([special, grid.flatten(2).transpose(1, 2)], dim=1))
    assert (ours(network, mels) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    own = loaded(dataclasses.replace(AST, table_frames=frames), tmp_path / "public.pth")
    assert (ours(own, mels) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_an_ast_without_the_distillation_token_leaves_it_out_and_is_no_whole_classifier(tmp_path: Path) -> None:
    path = saved(filled(AstReference()).state_dict(), tmp_path)
    single = dataclasses.replace(AST, distilled=False)
    assert "module.v.dist_token" in load_backbone(VisionTransformer(single), path).dropped
    for model, said in (
        (single, r"has a dist_token, unlike this model: set model\.distilled"),
        (
            dataclasses.replace(AST, positions="factorised", table_like="asit"),
            r"has no pos_embed_time, .* model\.positions",
        ),
        (dataclasses.replace(AST, stride=8), r"pos_embed in .* is for 144 patches, which are not 15 .* model\.stride"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_classifier(ClassifierNetwork(model, CLASSES, 0), path)
    with pytest.raises(CheckpointError, match=r"shape \(5, 24\), this classifier's has \(7, 24\)"):
        load_classifier(ClassifierNetwork(AST, 7, 0), path)


def test_transformers_ast_equals_itself(tmp_path: Path) -> None:
    """A folder of ASTForAudioClassification, and the same under the names of either kind of version."""
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, max_length=128,
        num_labels=CLASSES,
    )  # fmt: skip
    model = filled(ASTForAudioClassification(config))
    model.save_pretrained(tmp_path)
    mels = sounds(128, 128)
    with torch.no_grad():
        expected = model(torch.stack(mels)).logits
    state = load_file(tmp_path / "model.safetensors")
    if any(".q_proj" in name for name in state):
        for new, old in OLD.items():
            state = {name.replace(new, old): tensor for name, tensor in state.items()}
    else:
        for new, old in OLD.items():
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
    other = tmp_path / "other"
    other.mkdir()
    save_file(state, other / "model.safetensors")
    same_head = dataclasses.replace(AST, head_eps=config.layer_norm_eps)
    for folder in (tmp_path, other):
        got = ours(loaded(same_head, folder), mels)
        assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    backbone = tmp_path / "backbone"
    model.audio_spectrogram_transformer.save_pretrained(backbone)
    vit = VisionTransformer(AST, seed=4)
    assert load_backbone(vit, backbone).dropped == ()
    assert torch.equal(vit.norm.bias, model.audio_spectrogram_transformer.layernorm.bias)
    with pytest.raises(CheckpointError, match="has no classifier"):
        load_classifier(ClassifierNetwork(AST, CLASSES, 0), backbone)


@pytest.mark.long
def test_transformers_ast_equals_itself_at_full_size(tmp_path: Path) -> None:
    """ViT-B, 10 s at a stride of 10, 527 classes: 1,214 tokens."""
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(num_labels=527)
    model = ASTForAudioClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.03, generator=generator)
    model.save_pretrained(tmp_path)
    sizes = schema.Model(table_frames=1024, stride=10, distilled=True, table_like="ast", head_eps=config.layer_norm_eps)
    network = ClassifierNetwork(sizes, 527, seed=0)
    load_classifier(network, tmp_path)
    mels = sounds(1024)
    with torch.no_grad():
        expected = model(torch.stack(mels)).logits
        assert (ours(network, mels) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


# Starts -------------------------------------------------------------------------------------------------------------


def test_ssast_becomes_factorised_tables(tmp_path: Path) -> None:
    """8 x 64 positions of a pretrained SSAST, its prediction heads and mask embedding left out."""
    v = filled(AstReference(1024, stride=16)).v.state_dict()
    state = {f"v.{name}": tensor for name, tensor in v.items()}
    state |= {"mask_embed": torch.ones(1, 24), "cpredlayer.0.weight": torch.ones(2, 2), "p_input_fdim": torch.ones(())}
    path = saved(state, tmp_path)
    vit = VisionTransformer(dataclasses.replace(ELASTIC, table_frames=3072), seed=5)
    start = load_backbone(vit, path)
    assert "kernels of (frequency, time) turned, positions of 64x8 to 192x8" in str(start)
    assert {"module.mask_embed", "module.cpredlayer.0.weight", "module.v.dist_token"} <= set(start.dropped)
    assert start.fresh == tuple(name for name in vit.state_dict() if name.startswith("attn_pool."))
    grid = v["pos_embed"][:, 2:].transpose(1, 2).unflatten(2, (8, 64))
    wide = F.interpolate(grid, size=(8, 192), mode="bilinear", align_corners=False)[0]
    for found, mean in ((vit.pos_embed_time, wide.mean(1).T), (vit.pos_embed_freq, wide.mean(2).T)):
        assert (found - mean).abs().max() <= 1e-6 * wide.abs().max()  # a mean is as far off as what it is the mean of
    kernel = v["patch_embed.proj.weight"]
    assert torch.equal(vit.patch_embed.proj.weight[:, 16 * 3 + 5], kernel[:, 0, 5, 3])  # time 3, frequency 5


@pytest.mark.parametrize("head", ["head", "head_cls"])
def test_published_asit_is_a_start_for_both(tmp_path: Path, head: str) -> None:
    """The teacher of student and teacher; kernels and grid are (time, frequency) already."""
    model = schema.Model(dim=24, depth=2, heads=2, table_frames=592)
    teacher = VisionTransformer(model, seed=6)
    state = dict(teacher.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unflatten(1, (1, 16, 16))
    whole = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    whole |= {f"module.{head}.mlp.0.weight": torch.ones(2, 2), "module.head_recons.mlp.0.weight": torch.ones(2, 2)}
    student = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    torch.save({"student": student, "teacher": whole, "epoch": 3}, tmp_path / "asit.pth")
    vit = VisionTransformer(model, seed=7)
    start = load_backbone(vit, tmp_path / "asit.pth")
    assert start.prefix == "teacher.module.backbone."
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(vit.state_dict().values(), teacher.state_dict().values())
    )
    elastic = VisionTransformer(ELASTIC, seed=8)
    assert "positions of 37x8 to 12x8" in str(load_backbone(elastic, tmp_path / "asit.pth"))
    assert torch.equal(elastic.patch_embed.proj.weight, teacher.patch_embed.proj.weight)


def test_frames_as_patches_are_refused(tmp_path: Path) -> None:
    """SSAST's frame-based models have patches of 128 x 2."""
    state = {f"v.{name}": tensor for name, tensor in filled(AstReference()).v.state_dict().items()}
    path = saved(state | {"v.patch_embed.proj.weight": torch.zeros(24, 1, 128, 2)}, tmp_path)
    with pytest.raises(CheckpointError, match="patches of 128x2, this model's are 16x16"):
        load_backbone(VisionTransformer(AST), path)


def test_an_image_model_starts_ast_as_ast_does(tmp_path: Path) -> None:
    """DeiT at 384: rows are frequencies, the middle 12 of 24; 24 columns stretched to 30, or the middle ones."""
    torch.manual_seed(0)
    deit = filled(timm.models.deit.VisionTransformerDistilled(img_size=384, embed_dim=24, depth=2, num_heads=2))
    path = saved(deit.state_dict(), tmp_path, prefix="")
    special, grid = deit.pos_embed.split([2, 576], dim=1)
    grid = grid.transpose(1, 2).unflatten(2, (24, 24))[:, :, 6:18]
    for frames, columns in ((320, 31), (208, 20)):
        vit = VisionTransformer(dataclasses.replace(AST, table_frames=frames))
        assert f"3 colours summed, positions of 24x24 to {columns}x12" in str(load_backbone(vit, path))
        if columns > 24:
            expected = F.interpolate(grid, size=(12, columns), mode="bilinear", align_corners=False)
        else:
            expected = grid[..., 12 - columns // 2 :][..., :columns]
        expected = torch.cat([special, expected.permute(0, 3, 2, 1).flatten(1, 2)], dim=1)
        assert_close(vit.pos_embed, expected, 2e-6)
        kernel = deit.patch_embed.proj.weight.sum(1)
        assert_close(vit.patch_embed.proj.weight[:, 16 * 3 + 5], kernel[:, 5, 3])
        assert torch.equal(vit.dist_token, deit.dist_token)
