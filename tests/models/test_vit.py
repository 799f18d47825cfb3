"""The transformer on packed tokens: packing changes nothing, length is free, a seed decides everything."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import timm
import torch
from torch import nn

from gamut.errors import RecipeError
from gamut.models import vit as vit_module
from gamut.models.attention import attention
from gamut.models.backbone import SIZES, build, sized
from gamut.models.layout import Layout, layout
from gamut.models.vit import VisionTransformer, joined
from gamut.randomness import Purpose, key, key_torch, uniform
from gamut.recipe import schema
from tests.close import assert_close

SMALL = schema.Model(dim=48, depth=3, heads=3, table_frames=160, pooling_heads=4, drop_path=0.0)
# 16 frames, one run of equals, the table's length, beyond it by one column, 30 s.
ODD = (16, 96, 96, 160, 176, 2992, 16)
AST = {"pooling": "cls", "distilled": True, "stride": 10, "table_like": "ast"}
KINDS = [(positions, pooling) for positions in ("learned", "factorised") for pooling in ("cls", "attention", "mean")]


def batch(model: schema.Model, sizes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, Layout]:
    frames = torch.tensor(sizes, dtype=torch.int64)
    where = layout(frames, sizes, model.pooling == "cls", distilled=model.distilled, stride=model.stride)
    return torch.randn(len(where.patch), 256, generator=torch.Generator().manual_seed(seed)), where


def run(vit: VisionTransformer, patches: torch.Tensor, where: Layout, keys: torch.Tensor | None = None) -> torch.Tensor:
    return vit.pool(vit(patches, where, keys), where)


def gradients(vit: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    vit.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in vit.named_parameters()}


def close(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, gradient in mine.items():
        scale = max(1.0, theirs[name].abs().max().item())
        assert (gradient - theirs[name]).abs().max() <= tolerance * scale, name


def three_ways(
    model: schema.Model, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """(pooled vectors, gradients) of the odd lengths: packed, one at a time, and packed with a dense mask."""
    vit = VisionTransformer(model, seed=1).to(dtype)
    sizes = ODD if model.stride == 16 else tuple(min(size, 496) for size in ODD)  # at 30 s the dense mask is 100 MB
    patches, where = batch(model, sizes)
    patches = patches.to(dtype)
    weight = torch.randn(len(sizes), model.dim, generator=torch.Generator().manual_seed(5)).to(dtype)
    packed = run(vit, patches, where)
    results = [(packed.detach(), gradients(vit, (packed * weight).sum()))]
    clips = patches.split([width * where.bands for width in where.widths])
    single = [run(vit, clip, vit.layout(torch.tensor([size]), (size,))) for clip, size in zip(clips, sizes)]
    alone = torch.cat(single)
    results.append((alone.detach(), gradients(vit, (alone * weight).sum())))
    monkeypatch.setattr(vit_module, "attention", functools.partial(attention, backend="dense"))
    dense = run(vit, patches, where)
    return [*results, (dense.detach(), gradients(vit, (dense * weight).sum()))]


@pytest.mark.parametrize(
    "kind",
    [
        *({"positions": positions, "pooling": pooling} for positions, pooling in KINDS),
        {"positions": "factorised", "pooling": "attention", "attention_scale": 1.0},  # published ElasticAST
        AST,
        {"positions": "factorised", "pooling": "attention", "stride": 10},
    ],
    ids=lambda kind: "-".join(str(value) for value in kind.values()),
)
def test_packed_equals_one_at_a_time_equals_dense(kind: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dataclasses.replace(SMALL, **kind)
    pooling = model.pooling
    packed, *others = three_ways(model, torch.float32, monkeypatch)
    # Under mean pooling all tokens of a clip give the last norm's bias the same gradient, and torch's LayerNorm adds
    # them up one after the other: a thousand equal roundings, in either way of packing. float64 below has no such room.
    loose = {"norm.bias"} if pooling == "mean" else set()
    for vectors, of_vectors in others:
        assert (packed[0] - vectors).abs().max() <= 1e-5
        close({name: value for name, value in packed[1].items() if name not in loose}, of_vectors, 1e-5)
        close({name: value for name, value in packed[1].items() if name in loose}, of_vectors, 1e-4)


def test_the_difference_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, *others = three_ways(dataclasses.replace(SMALL, pooling="mean"), torch.float64, monkeypatch)
    for vectors, of_vectors in others:
        assert (packed[0] - vectors).abs().max() <= 1e-12
        close(packed[1], of_vectors, 1e-12)


def test_fixed_length_equals_timm() -> None:
    """timm's vision transformer, with our weights by name, on the same pictures."""
    model = dataclasses.replace(SMALL, dim=96, table_frames=96)
    ours = VisionTransformer(model, seed=3)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=(96, 128), patch_size=16, in_chans=1, num_classes=0, embed_dim=96, depth=3, num_heads=3
    )
    state = dict(ours.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(96, 1, 16, 16)
    theirs.load_state_dict(state, strict=True)
    pictures = torch.randn(2, 1, 96, 128, generator=torch.Generator().manual_seed(0))
    patches = pictures.unfold(2, 16, 16).unfold(3, 16, 16).reshape(-1, 256)
    where = layout(torch.tensor([96, 96]), (96, 96), class_token=True)
    expected = theirs.forward_features(pictures)
    assert (ours(patches, where).reshape(2, 49, 96) - expected).abs().max() <= 1e-5


def test_drop_path_does_not_depend_on_the_packing() -> None:
    model = dataclasses.replace(SMALL, drop_path=0.6)
    vit = VisionTransformer(model, seed=1).train()
    sizes = (32, 48, 16, 48)
    patches, where = batch(model, sizes)
    keys = key_torch(7, 0, torch.arange(4))
    packed = vit(patches, where, keys)
    order = [2, 0, 3, 1]
    clips, pieces = patches.split([size // 2 for size in sizes]), packed.split(where.lengths)
    shuffled = tuple(sizes[i] for i in order)
    again = layout(torch.tensor(shuffled), shuffled, class_token=True)
    other = vit(torch.cat([clips[i] for i in order]), again, keys[order]).split(again.lengths)
    for mine, i in zip(other, order):
        assert (mine - pieces[i]).abs().max() <= 1e-5
    assert not torch.equal(packed, vit(patches, where, key_torch(8, 0, torch.arange(4))))
    assert torch.equal(vit.eval()(patches, where, keys), vit.train()(patches, where, None))


def test_drop_path_drops_whole_segments_as_often_as_asked() -> None:
    model = dataclasses.replace(SMALL, drop_path=0.4)
    vit = VisionTransformer(model).train()
    sizes = (16,) * 4000
    where = layout(torch.tensor(sizes), sizes, class_token=True)
    keys = key_torch(3, torch.arange(4000))
    keep = vit.keep(where, keys)
    assert keep is not None
    per_segment = keep.reshape(6, 4000, 9)
    assert torch.equal(per_segment.amin(2), per_segment.amax(2))
    shares = (per_segment[:, :, 0] == 0).float().mean(1)
    assert (shares - torch.tensor([0.0, 0.0, 0.2, 0.2, 0.4, 0.4])).abs().max() <= 0.03
    assert (keep.mean(dim=(1, 2)) - 1.0).abs().max() <= 0.04
    expected = uniform(key(key(3, list(range(4000))), 5, Purpose.DROP_PATH)) >= 0.4
    assert (per_segment[5, :, 0] > 0).tolist() == expected.tolist()


@pytest.mark.parametrize(("positions", "pooling"), KINDS)
def test_empty_batch_gives_zero_gradients(positions: str, pooling: str) -> None:
    model = dataclasses.replace(SMALL, positions=positions, pooling=pooling, drop_path=0.2)
    vit = VisionTransformer(model).train()
    patches, where = batch(model, ())
    pooled = run(vit, patches, where, torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, model.dim)
    assert not any(gradient.any() for gradient in gradients(vit, pooled.sum()).values())


@pytest.mark.parametrize(("positions", "pooling"), KINDS)
def test_seed_decides_the_weights_and_nothing_else_moves(positions: str, pooling: str) -> None:
    model = dataclasses.replace(SMALL, positions=positions, pooling=pooling, drop_path=0.2)
    before = torch.get_rng_state()
    first, same, other = (VisionTransformer(model, seed=seed) for seed in (4, 4, 5))
    patches, where = batch(model, (32, 48))
    run(first.train(), patches, where, key_torch(torch.arange(2))).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    for (name, mine), theirs, third in zip(first.named_parameters(), same.parameters(), other.parameters()):
        assert torch.isfinite(mine).all(), name
        assert torch.equal(mine, theirs), name
        drawn = not (name.endswith("bias") or "norm" in name)
        assert torch.equal(mine, third) != drawn, name
        if drawn and mine.numel() > 5000:
            assert mine.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(mine.mean().item()) < 0.001, name


@pytest.mark.parametrize(("positions", "pooling"), KINDS)
def test_backward_is_bitwise_repeatable_with_two_threads(positions: str, pooling: str) -> None:
    model = dataclasses.replace(SMALL, positions=positions, pooling=pooling, drop_path=0.2)
    vit = VisionTransformer(model).train()
    patches, where = batch(model, (16, 480, 480, 240, 208))
    keys = key_torch(torch.arange(5))
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(vit, run(vit, patches, where, keys).square().sum()) for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    for again in runs[1:]:
        for name, gradient in runs[0].items():
            assert torch.equal(gradient, again[name]), name


def test_bf16_autocast_stays_close_and_keeps_fp32_tokens() -> None:
    vit = VisionTransformer(SMALL, seed=2).train()
    patches, where = batch(SMALL, (32, 48, 176))
    exact = run(vit, patches, where)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(vit, patches, where)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() <= 0.05
    assert torch.isfinite(torch.stack([g.norm() for g in gradients(vit, rough.sum()).values()])).all()
    assert run(vit.bfloat16(), patches, where).dtype == torch.bfloat16


@pytest.mark.parametrize(("size", "low", "high"), [("tiny", 2.5e6, 3e6), ("s", 21e6, 22.5e6), ("b", 85e6, 86e6)])
def test_parameter_counts_of_the_papers(size: str, low: float, high: float) -> None:
    assert set(SIZES) == {"tiny", "s", "b"}
    assert low <= sum(parameter.numel() for parameter in build(sized(size)).parameters()) <= high


def test_a_distillation_token_follows_each_class_token() -> None:
    vit = VisionTransformer(dataclasses.replace(SMALL, **AST), seed=1)
    where = vit.layout(torch.tensor([16, 32]), (16, 32))
    assert (where.lengths, where.special, where.bands) == ((14, 26), 2, 12)
    assert where.cls.tolist() == [0, 14]
    assert where.patch.tolist() == [*range(2, 14), *range(16, 40)]
    tokens = torch.arange(40.0)[:, None].expand(40, 48)
    assert vit.pool(tokens, where)[:, 0].tolist() == [0.5, 14.5]


def test_mismatched_layout_is_refused() -> None:
    vit = VisionTransformer(SMALL)
    patches, where = batch(SMALL, (32,))
    with pytest.raises(ValueError, match="class token"):
        vit(patches, layout(torch.tensor([32]), (32,), class_token=False))
    with pytest.raises(ValueError, match="do not fit"):
        vit(patches[1:], where)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 50}, "must be a multiple of model.heads"),
        ({"pooling": "attention", "pooling_heads": 7}, "model.pooling_heads"),
        ({"table_frames": 100}, "model.table_frames"),
        ({"positions": "rotary"}, "'rotary'"),
        ({"pooling": "max"}, "'max'"),
        ({"pooling": "mean", "distilled": True}, "model.distilled .* needs model.pooling cls"),
        ({"stride": 17}, "model.stride must be between 1 and 16, not 17"),
        ({"table_like": "vit"}, "'vit'"),
        ({"drop_path": 1.0}, "model.drop_path"),
    ],
)
def test_impossible_models_are_named(change: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        VisionTransformer(dataclasses.replace(SMALL, **change))
    with pytest.raises(RecipeError, match="'huge'"):
        sized("huge")


def test_the_deviation_of_the_beginning_is_a_key() -> None:
    """Weights of one seed at another deviation are the same numbers on another scale; norms and biases are not."""
    narrow = VisionTransformer(SMALL, seed=3).state_dict()
    wide = VisionTransformer(dataclasses.replace(SMALL, init_std=0.1), seed=3).state_dict()
    for name, value in narrow.items():
        drawn = value.ndim > 1
        assert_close(wide[name], 5.0 * value if drawn else value, name=name)
        assert not drawn or 0.015 < float(value.std()) < 0.025, name


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_a_branch_joins_by_one_rounding_forward_and_backward(kind: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    x, branch, gradient = (torch.randn(40, 8, generator=random).to(kind) for _ in range(3))
    keep = (torch.rand(40, 1, generator=random) > 0.3) / 0.93
    mine = [tensor.clone().requires_grad_() for tensor in (x, branch)]
    exact = [tensor.double().requires_grad_() for tensor in (x, branch)]
    out, expected = joined(*mine, keep), exact[0] + exact[1] * keep.double()
    out.backward(gradient)
    expected.backward(gradient.double())
    assert_close(out, expected.to(kind))
    for found, other in zip(mine, exact):
        assert found.grad is not None
        assert other.grad is not None
        assert_close(found.grad, other.grad.to(kind))
