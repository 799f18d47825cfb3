"""What each key of the objective changes, and that it changes nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gamut.train.objective import Moment
from pretrain.asit import Asit
from pretrain.network import AsitNetwork
from tests.asit import NOW, RECIPE, assert_same_metrics, objective, whole_step
from tests.close import apart, assert_close
from tests.packs import packed, part

LOSSES = ("reconstruction", "local", "global")


def only(*names: str) -> dict[str, float]:
    return {f"weight_{name}": float(name in names) for name in LOSSES}


@pytest.mark.parametrize(
    ("on", "target"),
    [
        (("reconstruction",), 0.0),
        (("global",), 0.0),
        (("local",), 0.7),
        (("reconstruction",), 0.7),
        (("local", "global"), 0.7),
        (("reconstruction", "global"), 0.7),
        (("reconstruction", "local"), 0.7),
        (LOSSES, 0.7),
    ],
    ids=str,
)
def test_losses_that_are_on_train_everything_that_is_there(on: tuple[str, ...], target: float) -> None:
    """A loss that is off costs nothing: it has no head, and without a distilled loss the teacher does not run."""
    batch = packed([96] * 4, views=2)
    loss, metrics, gradients = whole_step(objective(mask_target=target, **only(*on)), [batch])
    assert {name.removeprefix("loss/") for name in metrics if name.startswith("loss/")} == set(on)
    assert loss == pytest.approx(sum(metrics[f"loss/{name}"] for name in on), rel=1e-6)
    assert all(gradient.any() for name, gradient in gradients.items() if not name.endswith("attn.qkv.bias"))
    everything = whole_step(objective(mask_target=target), [batch])
    for name in on:  # heads come from a seed of their own, so the others do not change a loss
        assert metrics[f"loss/{name}"] == pytest.approx(everything[1][f"loss/{name}"], rel=1e-6)
    heads = {name.split(".")[0] for name in gradients} - {"backbone"}
    assert heads == {"reconstruction"} & set(on) | ({"projection"} if {"local", "global"} & set(on) else set())


def test_loss_weights() -> None:
    batch = packed([96] * 4, views=2)
    loss, metrics, _ = whole_step(objective(weight_reconstruction=2.0, weight_local=0.5, weight_global=0.25), [batch])
    parts = [metrics[f"loss/{name}"] for name in LOSSES]
    assert loss == pytest.approx(2.0 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2], rel=1e-6)


def test_the_local_loss_may_be_over_all_tokens() -> None:
    batch = packed([96] * 4, views=2)
    task = objective(local_on="all", mask_target=0.3)
    prepared = task.prepare(batch, NOW)
    assert prepared.counts[1] == len(prepared.inputs.clean) == 4 * 48
    masked = objective(mask_target=0.3).prepare(batch, NOW)
    assert masked.counts[1] == masked.inputs.own.masks.touched.sum() < 4 * 48
    assert torch.equal(masked.inputs.hidden, prepared.inputs.hidden)


def network(**options: object) -> AsitNetwork:
    return AsitNetwork(RECIPE.model, replace(RECIPE.asit, **options), 0)


def test_heads_share_all_or_their_mlp_or_nothing() -> None:
    shared, partly, separate = (network(heads=heads) for heads in ("shared", "partly", "separate"))
    base = {name for name, _ in shared.named_parameters()}
    own = lambda task: {name for name, _ in task.named_parameters()} - base  # noqa: E731
    assert own(partly) == {"projection_data.weight"}
    mlp = {f"projection_data.mlp.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert own(separate) == mlp | {"projection_data.last_layer.weight"}
    different = network(heads="partly", prototypes=24, prototypes_data=10)
    assert different.projection.last_layer.weight.shape == (24, 16)
    assert different.projection_data.weight.shape == (10, 16)


@pytest.mark.parametrize("heads", ["shared", "partly", "separate"])
def test_each_loss_moves_its_own_head(heads: str) -> None:
    task = objective(heads=heads, **({} if heads == "shared" else {"prototypes_data": 10}))
    batch = packed([96] * 4, views=2)
    prepared = task.prepare(batch, NOW)
    outputs = task.model(
        prepared.inputs.hidden, prepared.inputs.student, None, torch.arange(len(prepared.inputs.hidden))
    )
    assert outputs.classes.shape == (4, 24)
    assert outputs.data.shape == (4 * 48, 24 if heads == "shared" else 10)
    outputs.data.square().sum().backward()
    moved = {
        name for name, p in task.model.named_parameters() if p.grad is not None and p.grad.any() and "proj" in name
    }
    last = {"shared": "projection.last_layer.weight", "partly": "projection_data.weight"}
    assert last.get(heads, "projection_data.last_layer.weight") in moved
    assert ("projection.mlp.0.weight" in moved) == (heads != "separate")
    assert ("projection.last_layer.weight" in moved) == (heads == "shared")
    gradients = whole_step(task, [batch])[2]
    assert all(gradient.any() for name, gradient in gradients.items() if not name.endswith("attn.qkv.bias"))
    task.after_step(NOW)
    assert task.centres.data.value.shape == (24 if heads == "shared" else 10,)
    assert task.centres.data.value.any()


def test_the_reconstruction_head_of_the_published_code() -> None:
    head = network(reconstruction_hidden=32, reconstruction_bottleneck=32, reconstruction_last_gelu=True).reconstruction
    assert [type(layer).__name__ for layer in head.mlp] == ["Linear", "GELU"] * 3
    assert [tuple(layer.weight.shape) for layer in head.mlp[::2]] == [(32, 32)] * 3
    plain = network().reconstruction
    assert [type(layer).__name__ for layer in plain.mlp] == ["Linear", "GELU", "Linear", "GELU", "Linear"]


def test_a_trained_gain_scales_its_output() -> None:
    head = network(gain="trained").projection
    assert torch.equal(head.last_layer.gain, torch.ones(24))
    tokens = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    fixed = network().projection
    assert torch.equal(head(tokens), fixed(tokens))
    assert fixed.last_layer.gain is None
    with torch.no_grad():
        head.last_layer.gain.mul_(torch.arange(24.0))
    assert_close(head(tokens), fixed(tokens) * torch.arange(24.0))
    head(tokens).sum().backward()
    assert head.last_layer.gain.grad.any()


@pytest.mark.parametrize("heads", ["shared", "partly", "separate"])
def test_output_layers_stand_still_for_their_first_epochs(heads: str) -> None:
    """Gradients are zeros, not absent; AdamW with them moves nothing but the length of the rows, which has no say."""
    batch = packed([96] * 4, views=2)
    task = objective(heads=heads, gain="trained", freeze_output_epochs=1)
    prepared = task.prepare(batch, NOW)
    totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.1, weight_decay=0.4)
    outputs = ("last_layer", "projection_data.weight", "projection_data.gain")

    def directions() -> dict[str, torch.Tensor]:
        named = task.model.named_parameters()
        return {
            name: torch.nn.functional.normalize(p.detach().clone(), dim=-1)
            for name, p in named
            if any(output in name for output in outputs) and name.endswith("weight")
        }

    for epoch, moves in ((0, False), (1, True)):
        before = directions()
        now = Moment(epoch=epoch, step=epoch, step_in_epoch=0, fraction=0.5 * epoch)
        optimizer.zero_grad()
        loss, _ = task.loss(task.model, prepared, totals, now)
        loss.backward()
        for name, p in task.model.named_parameters():
            if any(output in name for output in outputs):
                assert bool(p.grad.any()) == moves, name
        optimizer.step()
        for name, was in before.items():
            assert (apart(directions()[name], was) <= 1e-6) == (not moves), name


def test_the_teachers_temperature_rises_over_its_epochs() -> None:
    recipe = replace(
        RECIPE,
        epochs=100,
        asit=replace(RECIPE.asit, teacher_temperature_start=0.04, teacher_temperature_epochs=5.0),
    )
    task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
    at = lambda fraction: Moment(epoch=0, step=0, step_in_epoch=0, fraction=fraction)  # noqa: E731
    found = [task.teacher_temperature(at(fraction)) for fraction in (0.0, 0.01, 0.025, 0.05, 0.5)]
    assert found == pytest.approx([0.04, 0.046, 0.055, 0.07, 0.07])
    assert objective().teacher_temperature(at(0.0)) == 0.07

    batch = packed([96] * 2, views=2)
    prepared = task.prepare(batch, NOW)
    totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
    early, late = ({k: float(v) for k, v in task.loss(task.model, prepared, totals, at(f))[1].items()} for f in (0, 1))
    assert early["teacher/entropy"] < late["teacher/entropy"]
    assert early["teacher/entropy_data"] < late["teacher/entropy_data"]
    assert early["loss/reconstruction"] == pytest.approx(late["loss/reconstruction"], rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"mask_fill": "noise"},
        {"mask_fill": "clip"},
        {"mask_target_least": 0.3, "mask_copied": 0.5},
        {"mask_shape": "time", "mask_aligned": True},
        {"mask_shape": "frequency", "heads": "partly"},
        {"heads": "separate", "prototypes_data": 10, "local_on": "all"},
        {"mask_target": 0.0},
    ],
    ids=str,
)
def test_no_variant_depends_on_how_a_step_is_split(options: dict[str, object]) -> None:
    batch = packed([96] * 10, views=2, packs=(2, 1, 2))
    one = whole_step(objective(**options), [batch])
    empty = packed([], views=2)
    two = whole_step(objective(**options), [part(batch, 0, 2), empty, part(batch, 2, 5)])
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert_same_metrics(two[1], one[1])
    for name, gradient in one[2].items():
        if not name.endswith("attn.qkv.bias"):
            assert_close(two[2][name], gradient, 3e-6, name)


def test_clips_without_another_to_copy_from_are_counted() -> None:
    batch = packed([96] * 6, views=2, packs=(2, 1))
    _, metrics, _ = whole_step(objective(mask_fill="clip"), [batch])
    assert metrics["mask/clips_alone"] == 1
    assert "mask/clips_alone" not in whole_step(objective(), [batch])[1]


def test_a_missing_word_of_the_packs_is_not_taken_for_no_clips() -> None:
    batch = replace(packed([96] * 4, views=2), pack_clips=())
    with pytest.raises(AssertionError, match="2 clips"):
        objective(mask_fill="clip").prepare(batch, NOW)
