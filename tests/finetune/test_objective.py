"""The supervised losses against torch's own, and the scores' independence of neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from finetune.objective import Classify, multi_hot, soft_targets
from gamut.data.batch import Hole, PackedBatch
from gamut.recipe import schema
from gamut.train.engine import parameter_groups
from gamut.train.objective import Moment
from tests.packs import packed, part

MODEL = schema.Model(dim=32, depth=2, heads=2, table_frames=96, drop_path=0.0)
NOW = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.0)


def objective(**finetune: object) -> Classify:
    recipe = schema.Recipe(stage="finetune", model=MODEL, finetune=schema.Finetune(**finetune))  # type: ignore[arg-type]
    return Classify(recipe, 5, -4.0, 4.0, seed=0, device=torch.device("cpu"))


def test_labels_become_rows_of_ones() -> None:
    got = multi_hot(packed([16, 16, 16], [[1], [], [0, 4]]), 5)
    assert got.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch_s(smoothing: float) -> None:
    task = objective(loss="ce", label_smoothing=smoothing)
    clips = packed([32, 96, 48], [[1], [3], [0]])
    loss, metrics = task.loss(task.model, task.prepare(clips, NOW), {"clips_with_labels": 3.0}, NOW)
    logits = task.logits(clips)
    expected = F.cross_entropy(logits, torch.tensor([1, 3, 0]), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    right = (logits.argmax(1) == torch.tensor([1, 3, 0])).float().mean()
    assert metrics["train/accuracy"].item() == pytest.approx(right.item())


def test_binary_cross_entropy_equals_torch_s_mean() -> None:
    task = objective(loss="bce")
    clips = packed([32, 64], [[1, 2], []])
    loss, _ = task.loss(task.model, task.prepare(clips, NOW), {"clips_with_labels": 2.0}, NOW)
    expected = F.binary_cross_entropy_with_logits(task.logits(clips), multi_hot(clips, 5))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def mixed_pair() -> tuple[PackedBatch, torch.Tensor]:
    """Three clips, of which the second is mixed with a shorter one; and the waveform mixed by hand, in floats."""
    clips = packed([32, 64, 16], [[1], [2, 4], [0]])
    other = packed([32], seed=3).waveform[:4000]
    mixed = replace(
        clips,
        partner_waveform=other,
        partner_offset=torch.tensor([0, 0, 4000, 4000]),
        partner_weight=torch.tensor([1.0, 0.25, 1.0]),
        partner_row=torch.tensor([-1, 7, -1]),
        partner_label_offset=torch.tensor([0, 0, 1, 1]),
        partner_label=torch.tensor([4]),
        partner_holes=(Hole(9, "dog", "checksum"),),
    )
    begin, end = int(clips.offset[1]), int(clips.offset[2])
    own, added = clips.waveform[begin:end] / 32768.0, other / 32768.0
    wave = 0.25 * (own - own.mean())
    wave[:4000] += 0.75 * (added - added.mean())
    return mixed, wave


def test_labels_are_mixed_as_the_sounds_are() -> None:
    got = soft_targets(mixed_pair()[0], 5)
    assert got.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0.25, 0, 1.0], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_the_loss_of_a_mixture_equals_torch_s(kind: str) -> None:
    """Against a batch whose second clip was mixed by hand (scaled, since it is int16 again), and torch's loss."""
    task = objective(loss=kind)
    task.recipe = replace(task.recipe, augment=schema.Augment(mixup=0.5))
    batch, wave = mixed_pair()
    loss, metrics = task.loss(task.model, task.prepare(batch, NOW), {"clips_with_labels": 3.0}, NOW)
    task.model.eval()
    begin, end = int(batch.offset[1]), int(batch.offset[2])
    by_hand = batch.waveform.clone()
    by_hand[begin:end] = (wave * 32768).round().to(torch.int16)
    logits = task.logits(replace(packed([32, 64, 16]), waveform=by_hand))
    target = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0.25, 0, 1.0], [1.0, 0, 0, 0, 0]])
    if kind == "ce":
        expected = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    else:
        expected = F.binary_cross_entropy_with_logits(logits, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["mixup/partner_holes"].item() == 1.0


def test_dropped_tokens_do_not_reach_the_model_in_training_alone() -> None:
    task, dropping = objective(), objective()
    dropping.recipe = replace(task.recipe, augment=schema.Augment(drop_tokens=0.1))
    clips = packed([32, 64, 16], [[1], [2], [0]])
    fewer, everything = dropping.prepare(clips, NOW).inputs, task.prepare(clips, NOW).inputs
    assert fewer.where.lengths == (16, 30, 9)  # CLS, and of 16, 32 and 8 patches all but floor(a tenth)
    assert torch.equal(fewer.patches[-8:], everything.patches[-8:])
    assert all(any(torch.equal(p, q) for q in everything.patches[:16]) for p in fewer.patches[:15])
    assert torch.equal(dropping.logits(clips), task.logits(clips))


def test_shares_of_micro_batches_sum_to_the_whole() -> None:
    task = objective()
    whole = packed([32, 96, 48, 16], [[1], [3], [0], [2]])
    parts = [(0, 1), (1, 4)]
    totals = {"clips_with_labels": 4.0}
    loss, _ = task.loss(task.model, task.prepare(whole, NOW), totals, NOW)
    shares = 0.0
    for first, last in parts:
        piece = part(whole, first, last)
        shares += task.loss(task.model, task.prepare(piece, NOW), totals, NOW)[0].item()
    assert shares == pytest.approx(loss.item(), rel=1e-6)


def test_an_empty_pack_gives_zero_loss_and_reaches_every_parameter() -> None:
    task = objective()
    empty = packed([], [])
    loss, _ = task.loss(task.model, task.prepare(empty, NOW), {"clips_with_labels": 3.0}, NOW)
    loss.backward()
    assert loss.item() == 0.0
    missing = [name for name, p in task.model.named_parameters() if p.grad is None and "mask" not in name]
    assert not missing


@pytest.mark.parametrize(("positions", "pooling"), [("learned", "cls"), ("factorised", "attention")])
@pytest.mark.parametrize("undecayed", ["vectors", "embeddings", "nothing"])
def test_what_has_no_weight_decay(positions: str, pooling: str, undecayed: str) -> None:
    """As timm, which leaves out of it what `no_weight_decay` names, the position table and class tokens."""
    tokens = {"distilled": True} if pooling == "cls" else {}
    model = replace(MODEL, positions=positions, pooling=pooling, pooling_heads=2, **tokens)
    recipe = schema.Recipe(stage="finetune", model=model, optim=schema.Optim(undecayed=undecayed))
    task = Classify(recipe, 5, -4.0, 4.0, seed=0, device=torch.device("cpu"))
    names = {parameter: name for name, parameter in task.model.named_parameters()}
    groups = parameter_groups(task.model, task.parameter_groups(), undecayed)
    plain = {names[p] for group in groups for p in group["params"] if not group["weight_decay_scale"]}
    vectors = {name for name, parameter in task.model.named_parameters() if parameter.ndim == 1}
    embeddings = {
        "learned": {"backbone.cls_token", "backbone.dist_token", "backbone.pos_embed"},
        "factorised": {"backbone.pos_embed_time", "backbone.pos_embed_freq"},
    }[positions]
    assert plain == {"vectors": vectors, "embeddings": vectors | embeddings, "nothing": set()}[undecayed]
    alone = parameter_groups(task.model, None, undecayed)  # where an objective has no groups of its own
    assert {names[p] for group in alone for p in group["params"] if not group["weight_decay_scale"]} == plain


@pytest.mark.parametrize(("positions", "pooling"), [("learned", "cls"), ("factorised", "attention")])
def test_lower_layers_learn_more_slowly(positions: str, pooling: str) -> None:
    """Block i of n at decay ** (n - i), what lies before them at decay ** (n + 1), what comes after at 1."""
    model = replace(MODEL, depth=3, positions=positions, pooling=pooling, pooling_heads=2)
    recipe = schema.Recipe(stage="finetune", model=model, optim=schema.Optim(layer_decay=0.5))
    task = Classify(recipe, 5, -4.0, 4.0, seed=0, device=torch.device("cpu"))
    names = {parameter: name for name, parameter in task.model.named_parameters()}
    groups = parameter_groups(task.model, task.parameter_groups())
    scale = {names[p]: (group["lr_scale"], group["weight_decay_scale"]) for group in groups for p in group["params"]}
    assert len(scale) == len(names)
    for name, (rate, decay) in scale.items():
        assert decay == (0.0 if task.model.get_parameter(name).ndim <= 1 else 1.0), name
        below = name.removeprefix("backbone.")
        if below.startswith("blocks."):
            assert rate == 0.5 ** (3 - int(below.split(".")[1])), name
        else:
            early = below.startswith(("patch_embed.", "cls_token", "pos_embed"))
            assert rate == (0.5**4 if early else 1.0), name
    assert {rate for rate, _ in scale.values()} == {1.0, 0.5, 0.25, 0.125, 0.0625}
