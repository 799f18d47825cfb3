"""Heads on all layers of a frozen encoder: the paper's sizes and costs, its arithmetic, its public names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gamut.errors import CheckpointError, RecipeError
from gamut.models.cost import ENCODERS, tagger_cost
from gamut.models.tagger import Tagger, load_tagger, open_tagger
from gamut.models.weights import save_weights
from gamut.recipe import schema
from gamut.settings import about
from tests.close import assert_close

KINDS = about(schema.Head)["kind"].bounds.choices

# Whisper-AT, Table 1 and 2: millions of parameters of a head for 527 classes.
PARAMETERS = {
    ("large", "tl_tr", None): 40.0, ("medium", "tl_tr", None): 25.7, ("small", "tl_tr", None): 14.6,
    ("base", "tl_tr", None): 6.6, ("tiny", "tl_tr", None): 3.75, ("large", "tl_tr", 512): 7.23,
    ("large", "wa_tr", None): 20.35, ("large", "wa_mlp", None): 0.68, ("large", "last_mlp", None): 0.68,
}  # fmt: skip
# Table 2, Whisper-large: dimension -> (billions of multiply-adds, millions of parameters).
DIMENSIONS = {128: (0.31, 0.6), 256: (0.94, 2.1), 512: (3.17, 7.2), 768: (6.72, 15.6), None: (16.42, 40.0)}


@pytest.mark.parametrize(("encoder", "kind", "dim"), PARAMETERS, ids=str)
def test_a_head_has_the_papers_parameters(encoder: str, kind: str, dim: int | None) -> None:
    found = tagger_cost(schema.Head(kind, dim), *ENCODERS[encoder]).parameters / 1e6
    published = PARAMETERS[encoder, kind, dim]
    assert found == pytest.approx(published, abs=0.005 if published in (7.23, 20.35, 3.75, 0.68) else 0.05)


@pytest.mark.parametrize("dim", DIMENSIONS, ids=str)
def test_a_head_costs_what_the_paper_says(dim: int | None) -> None:
    found = tagger_cost(schema.Head("tl_tr", dim), *ENCODERS["large"])
    assert found.multiply_adds / 1e9 == pytest.approx(DIMENSIONS[dim][0], abs=0.006)  # it gives two digits
    assert found.parameters / 1e6 == pytest.approx(DIMENSIONS[dim][1], abs=0.055)
    assert found.flops == 2 * found.multiply_adds


def test_the_speed_up_over_ast_is_the_papers() -> None:
    large = ENCODERS["large"]
    assert round(tagger_cost(schema.Head("tl_tr", 512), *large).speed_up) == 42
    assert round(tagger_cost(schema.Head("tl_tr"), *large).speed_up) == 8
    assert tagger_cost(schema.Head("wa_tr"), *large).speed_up == pytest.approx(270, rel=0.01)
    assert tagger_cost(schema.Head("last_mlp"), *large).speed_up == pytest.approx(195_000, rel=0.01)
    assert round(tagger_cost(schema.Head("tl_tr"), *ENCODERS["hubert-xlarge"]).speed_up) == 5


def tagger(kind: str, dim: int | None = None, classes: int = 5, seed: int = 3) -> Tagger:
    return Tagger(schema.Head(kind, dim, layer_heads=4), layers=3, dim=16, classes=classes, seed=seed).eval()


def features(clips: int = 2) -> torch.Tensor:
    return torch.randn(clips, 3, 25, 16, generator=torch.Generator().manual_seed(0))


def reference_block(weights: dict[str, torch.Tensor], x: torch.Tensor, heads: int) -> torch.Tensor:
    """Whisper's block written out, [length, dim] at a time."""
    y = F.layer_norm(x, x.shape[-1:], weights["attn_ln.weight"], weights["attn_ln.bias"])
    q = y @ weights["attn.query.weight"].T + weights["attn.query.bias"]
    k = y @ weights["attn.key.weight"].T
    v = y @ weights["attn.value.weight"].T + weights["attn.value.bias"]
    parts = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):
        parts.append((qh @ kh.T / qh.shape[-1] ** 0.5).softmax(-1) @ vh)
    x = x + torch.cat(parts, -1) @ weights["attn.out.weight"].T + weights["attn.out.bias"]
    y = F.layer_norm(x, x.shape[-1:], weights["mlp_ln.weight"], weights["mlp_ln.bias"])
    y = F.gelu(y @ weights["mlp.0.weight"].T + weights["mlp.0.bias"])
    return x + y @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]


def reference(head: Tagger, x: torch.Tensor) -> torch.Tensor:
    """One clip [layers, steps, dim] through a head, from the paper's words."""
    weights = {name: value.double() for name, value in head.state_dict().items()}

    def of(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        w = of(name)
        y = F.layer_norm(y, y.shape[-1:], w["0.weight"], w["0.bias"])
        return y @ w["1.weight"].T + w["1.bias"]

    x = x.double()
    if "layer_weight" in weights:
        share = weights["layer_weight"] / weights["layer_weight"].sum()
        x = sum(part * layer for part, layer in zip(share, x, strict=True))[None]
    elif head.head.kind == "last_mlp":
        x = x[-1:]
    if head.head.kind.endswith("mlp"):
        x = x.mean(1, keepdim=True)
    if "down_layer.0.weight" in weights:
        x = linear("down_layer.", x)
    if "time_tr.attn_ln.bias" in weights:
        x = torch.stack([reference_block(of("time_tr."), layer, head.head.time_heads) for layer in x])
    x = x.mean(1)
    if "layer_tr.attn_ln.bias" in weights:
        x = reference_block(of("layer_tr."), x, head.head.layer_heads)
    return linear("mlp_layer.", x.mean(0))


@pytest.mark.parametrize("dim", [None, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_computes_what_the_paper_says(kind: str, dim: int | None) -> None:
    head = tagger(kind, dim)
    with torch.no_grad():
        for parameter in head.parameters():  # far from their first values, so that every one of them shows
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))) * 0.2
        found = head(features())
    expected = torch.stack([reference(head, clip) for clip in features()])
    assert_close(found.double(), expected, 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_clip_gives_no_row_and_reaches_every_parameter(kind: str) -> None:
    head = tagger(kind, 8)
    logits = head(features(0))
    logits.sum().backward()
    assert logits.shape == (0, 5)
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_weights_come_from_the_seed_and_the_average_starts_even() -> None:
    same, other = tagger("wa_tr").state_dict(), tagger("wa_tr", seed=4).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in tagger("wa_tr").state_dict().items())
    assert not torch.equal(same["time_tr.mlp.0.weight"], other["time_tr.mlp.0.weight"])
    assert_close(same["layer_weight"], torch.full((3,), 1 / 3))


@pytest.mark.parametrize("prefix", ["at_model.", "module.", "module.at_model.", "head.", ""])
@pytest.mark.parametrize(("kind", "dim"), [(kind, None) for kind in KINDS] + [("tl_tr", 8)])
def test_public_and_own_names_load(tmp_path: Path, prefix: str, kind: str, dim: int | None) -> None:
    """As the whisper-at package saves a head: alone in a .pth, or inside a whole Whisper."""
    theirs = tagger(kind, dim, seed=9)
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    if prefix == "at_model.":
        state |= {"encoder.conv1.weight": torch.zeros(2), "decoder.ln.weight": torch.zeros(2)}
    torch.save({"model_state_dict": state} if prefix == "at_model." else state, tmp_path / "theirs.pth")
    mine = tagger(kind, dim)
    said = str(load_tagger(mine, tmp_path / "theirs.pth"))
    assert prefix in said
    assert ("left out model_state_dict (2 tensors)" in said) == (prefix == "at_model.")
    assert_close(mine(features()), theirs(features()))
    again = open_tagger(tmp_path / "theirs.pth", layers=3, layer_heads=4)
    assert again.head == theirs.head
    assert_close(again(features()), theirs(features()))


def test_a_public_model_has_these_names() -> None:
    """The public TL-Tr-512, name by name."""
    block = ["attn.query.weight", "attn.query.bias", "attn.key.weight", "attn.value.weight", "attn.value.bias",
             "attn.out.weight", "attn.out.bias", "attn_ln.weight", "attn_ln.bias", "mlp.0.weight", "mlp.0.bias",
             "mlp.2.weight", "mlp.2.bias", "mlp_ln.weight", "mlp_ln.bias"]  # fmt: skip
    pairs = [f"{name}.{part}" for name in ("down_layer.0", "down_layer.1", "mlp_layer.0", "mlp_layer.1") for part in
             ("weight", "bias")]  # fmt: skip
    expected = {f"{name}.{part}" for name in ("time_tr", "layer_tr") for part in block} | set(pairs)
    assert set(tagger("tl_tr", 8).state_dict()) == expected
    assert "layer_weight" in tagger("wa_mlp").state_dict()


def test_another_number_of_classes_leaves_the_classifier_fresh(tmp_path: Path) -> None:
    save_weights(tmp_path / "head.safetensors", tagger("tl_tr", 8, classes=7), {})
    mine = tagger("tl_tr", 8)
    before = mine.mlp_layer[1].weight.clone()
    said = str(load_tagger(mine, tmp_path / "head.safetensors"))
    assert "mlp_layer.1.weight" in said
    assert torch.equal(mine.mlp_layer[1].weight, before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: tagger("wa_tr"), "no tensor layer_tr.*; its head is of another kind"),
        (lambda: tagger("tl_tr", 8), "has shape"),
        (lambda: Tagger(schema.Head("tl_tr", layer_heads=4), 3, 32, 5), "has shape"),
    ],
)
def test_a_head_of_another_kind_is_refused_before_anything_is_copied(tmp_path: Path, wrong, message: str) -> None:
    save_weights(tmp_path / "head.safetensors", wrong(), {})
    mine = tagger("tl_tr")
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_tagger(mine, tmp_path / "head.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())


def test_what_holds_no_head_or_another_encoders_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "none.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="no single head"):
        open_tagger(tmp_path / "none.safetensors")
    save_weights(tmp_path / "wa.safetensors", tagger("wa_tr"), {})
    with pytest.raises(CheckpointError, match="3 layers, not 12"):
        open_tagger(tmp_path / "wa.safetensors", layers=12)
    with pytest.raises(CheckpointError, match="no head at"):
        open_tagger(tmp_path / "absent")
    with pytest.raises(RecipeError, match=r"not divisible by head\.layer_heads"):
        Tagger(schema.Head("tl_tr"), 3, 12, 5)
    with pytest.raises(ValueError, match="3 layers of 16"):
        tagger("tl_tr")(torch.zeros(1, 4, 25, 16))
