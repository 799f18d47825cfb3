"""Weights: what is saved is what is loaded; what does not fit is named before anything is copied."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from gamut.errors import CheckpointError
from gamut.models.positions import resize_grid, stretch
from gamut.models.vit import VisionTransformer
from gamut.models.weights import find_weights, load_backbone, load_weights, save_weights
from gamut.recipe import schema
from gamut.track.run import RunFolder
from tests.close import assert_close

MODEL = schema.Model(dim=24, depth=2, heads=2, table_frames=96, pooling_heads=4)


def snapshot(vit: VisionTransformer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vit.state_dict().items()}


def checkpoint(folder: Path, vit: VisionTransformer, manifest: bool = True) -> Path:
    """A checkpoint folder as a pretraining run writes it: the teacher beside heads and centres."""
    folder.mkdir(parents=True)
    state = {f"teacher.backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    state |= {"teacher.projection.mlp.0.weight": torch.ones(3, 24), "centre.class": torch.ones(7)}
    save_weights(folder / "objective.safetensors", state, {})
    if manifest:
        digest = hashlib.sha256((folder / "objective.safetensors").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps({"files": {"objective.safetensors": {"sha256": digest}}}))
    return folder


def test_round_trip(tmp_path: Path) -> None:
    vit = VisionTransformer(MODEL, seed=1)
    path = tmp_path / "vit.safetensors"
    save_weights(path, vit, {"model": dataclasses.asdict(MODEL), "step": 3})
    state, metadata = load_weights(path)
    assert metadata == {"model": dataclasses.asdict(MODEL), "step": 3}
    assert state.keys() == vit.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in vit.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["vit.safetensors"]
    other = VisionTransformer(MODEL, seed=2)
    loaded = load_backbone(other, path)
    assert (loaded.prefix, loaded.resized, loaded.fresh, loaded.dropped) == ("", (), (), ())
    assert all(torch.equal(state[name], tensor) for name, tensor in other.state_dict().items())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_teacher_of_a_run_its_checkpoint_or_the_file(tmp_path: Path) -> None:
    vit = VisionTransformer(MODEL, seed=1)
    run = tmp_path / "runs" / "asit"
    folder = checkpoint(run / "checkpoints" / "step-00000010", vit)
    checkpoint(run / "checkpoints" / "step-00000005", VisionTransformer(MODEL, seed=8))
    (run / "checkpoints" / "latest").write_text("step-00000010\n")
    for init in (run, folder, folder / "objective.safetensors"):
        other = VisionTransformer(MODEL, seed=2)
        loaded = load_backbone(other, str(init))
        assert loaded.path == folder / "objective.safetensors"
        assert loaded.prefix == "teacher.backbone."
        assert loaded.dropped == ("centre.class", "teacher.projection.mlp.0.weight")
        assert "centre (1 tensors), teacher (1 tensors)" in str(loaded)
        assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_trained_model_where_there_is_no_teacher(tmp_path: Path) -> None:
    vit = VisionTransformer(MODEL, seed=1)
    state = {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    save_weights(tmp_path / "model.safetensors", state | {"head.linear.bias": torch.ones(3)}, {})
    save_weights(tmp_path / "objective.safetensors", {}, {})
    other = VisionTransformer(MODEL, seed=2)
    loaded = load_backbone(other, tmp_path)
    assert (loaded.path.name, loaded.prefix, loaded.dropped) == (
        "model.safetensors",
        "backbone.",
        ("head.linear.bias",),
    )
    assert torch.equal(other.norm.weight, vit.norm.weight)


@pytest.mark.parametrize("frames", [64, 96, 208])
def test_position_tables_are_interpolated_once(tmp_path: Path, frames: int) -> None:
    saved = VisionTransformer(MODEL, seed=1)
    checkpoint(tmp_path / "learned", saved)
    vit = VisionTransformer(dataclasses.replace(MODEL, table_frames=frames), seed=2)
    loaded = load_backbone(vit, tmp_path / "learned")
    assert loaded.resized == (() if frames == 96 else ("pos_embed",))
    assert torch.equal(vit.pos_embed[0, :1], saved.pos_embed[0, :1])
    grid = saved.pos_embed[0, 1:].detach().unflatten(0, (-1, 8))
    assert torch.equal(vit.pos_embed[0, 1:], resize_grid(grid, frames // 16, 8).flatten(0, 1))

    factorised = dataclasses.replace(MODEL, positions="factorised")
    saved = VisionTransformer(factorised, seed=1)
    checkpoint(tmp_path / "factorised", saved)
    vit = VisionTransformer(dataclasses.replace(factorised, table_frames=frames), seed=2)
    assert load_backbone(vit, tmp_path / "factorised").resized == (() if frames == 96 else ("pos_embed_time",))
    assert torch.equal(vit.pos_embed_time, stretch(saved.pos_embed_time, frames // 16, "linear"))
    assert torch.equal(vit.pos_embed_freq, saved.pos_embed_freq)


def test_a_learned_grid_becomes_factorised_tables_and_not_the_other_way(tmp_path: Path) -> None:
    """ElasticAST after ASiT: linear over time, then each table is the mean over the other axis."""
    saved = VisionTransformer(MODEL, seed=1)
    checkpoint(tmp_path / "learned", saved)
    model = dataclasses.replace(MODEL, positions="factorised", pooling="mean", table_frames=208)
    vit = VisionTransformer(model, seed=2)
    loaded = load_backbone(vit, tmp_path / "learned")
    assert "positions of 6x8 to 13x8" in str(loaded)
    assert loaded.dropped == ("centre.class", "teacher.backbone.cls_token", "teacher.projection.mlp.0.weight")
    grid = stretch(saved.pos_embed[0, 1:].detach().unflatten(0, (6, 8)).flatten(1), 13, "linear").unflatten(1, (8, -1))
    assert_close(vit.pos_embed_time, grid.mean(1))
    assert_close(vit.pos_embed_freq, grid.mean(0))
    checkpoint(tmp_path / "factorised", vit)
    with pytest.raises(CheckpointError, match=r"no tensor teacher\.backbone\.pos_embed;"):
        load_backbone(VisionTransformer(dataclasses.replace(MODEL, pooling="mean")), tmp_path / "factorised")


def test_another_pooling_keeps_the_backbone(tmp_path: Path) -> None:
    saved = VisionTransformer(MODEL, seed=1)
    checkpoint(tmp_path / "cls", saved)
    vit = VisionTransformer(dataclasses.replace(MODEL, pooling="attention"), seed=2)
    fresh = snapshot(vit)
    loaded = load_backbone(vit, tmp_path / "cls")
    assert loaded.fresh == tuple(name for name in fresh if name.startswith("attn_pool."))
    assert "teacher.backbone.cls_token" in loaded.dropped
    assert torch.equal(vit.pos_embed, saved.pos_embed[:, 1:])
    assert torch.equal(vit.attn_pool.query, fresh["attn_pool.query"])

    checkpoint(tmp_path / "attention", vit)
    mean = VisionTransformer(dataclasses.replace(MODEL, pooling="mean"), seed=3)
    assert "teacher.backbone.attn_pool.query" in load_backbone(mean, tmp_path / "attention").dropped
    assert torch.equal(mean.norm.weight, vit.norm.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 48, "heads": 2}, r"teacher\.backbone\.cls_token in .* has shape \(1, 1, 24\)"),
        ({"depth": 3}, r"no tensor teacher\.backbone\.blocks\.2\.norm1\.weight"),
        ({"depth": 1}, r"has a tensor teacher\.backbone\.blocks\.1\.attn\.proj\.bias"),
        ({"distilled": True}, r"no tensor teacher\.backbone\.dist_token"),
        ({"mlp_ratio": 2.0}, r"blocks\.0\.mlp\.fc1\.weight in .* has shape \(96, 24\), this model's has \(48, 24\)"),
    ],
)
def test_mismatch_is_named_before_anything_is_copied(tmp_path: Path, change: dict, message: str) -> None:
    checkpoint(tmp_path / "saved", VisionTransformer(MODEL, seed=1))
    vit = VisionTransformer(dataclasses.replace(MODEL, **change), seed=2)
    before = snapshot(vit)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(vit, tmp_path / "saved")
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())


def test_model_with_a_class_token_needs_one(tmp_path: Path) -> None:
    checkpoint(tmp_path / "saved", VisionTransformer(dataclasses.replace(MODEL, pooling="mean"), seed=1))
    with pytest.raises(CheckpointError, match="cls_token"):
        load_backbone(VisionTransformer(MODEL), tmp_path / "saved")


def test_damage_is_caught(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "saved", VisionTransformer(MODEL, seed=1))
    path = folder / "objective.safetensors"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(path)
    (folder / "manifest.json").unlink()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        load_weights(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(tmp_path / "none.safetensors")


def test_a_file_that_says_what_it_is_knows_its_own_hash(tmp_path: Path) -> None:
    """No manifest lists the best weights of a round: damage in tensors, or in what they say, is seen."""
    path = tmp_path / "best.safetensors"
    state = {"a": torch.arange(6).view(2, 3).bfloat16(), "b": torch.tensor(2.0), "c": torch.ones(2, 0)}
    about = {"labels": ["dog", "rain"], "by": {2: 0.1, 10: 1 / 3}, "at": (1, 2)}
    save_weights(path, state, about)
    assert load_weights(path)[1] == json.loads(json.dumps(about))
    whole = path.read_bytes()
    for begin in (whole.index(b"rain"), len(whole) - 8):
        flipped = bytearray(whole)
        flipped[begin] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged: its sha256 is not the one that was written with it"):
            load_weights(path)


def test_the_checkpoint_to_take_instead_is_named(tmp_path: Path) -> None:
    places = [tmp_path / "checkpoints" / f"step-{step:08d}" for step in (1, 2, 3, 4)]
    for place in places:
        checkpoint(place, VisionTransformer(MODEL), manifest=False)
        (place / "state.json").write_text("{}")
        files = {name: (place / name).read_bytes() for name in ("objective.safetensors", "state.json")}
        entries = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
        }
        (place / "manifest.json").write_text(json.dumps({"files": entries}))
    for place in places[1:3]:
        (place / "objective.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"damaged: .* Take .*/step-00000001, the newest whole one before it\."):
        load_weights(places[2] / "objective.safetensors")
    (places[3] / "manifest.json").write_text("{")
    (places[0] / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read\. There is no whole one before it\."):
        load_weights(places[3] / "objective.safetensors")


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        find_weights(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        find_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="published no checkpoint yet"):
        find_weights(tmp_path)
    (tmp_path / "checkpoints" / "latest").write_text("../elsewhere")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        find_weights(tmp_path)
    path = tmp_path / "two.safetensors"
    save_weights(path, {f"{who}.patch_embed.proj.weight": torch.ones(1) for who in ("a", "b")}, {})
    with pytest.raises(CheckpointError, match=r"those of a\., b\."):
        load_backbone(VisionTransformer(MODEL), path)


def test_a_folder_of_runs_is_none_of_them(tmp_path: Path) -> None:
    checkpoint(tmp_path / "runs" / "one" / "checkpoints" / "step-00000001", VisionTransformer(MODEL))
    for place in ("one", "two/test-1-seed-0"):
        (tmp_path / "runs" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / place / "recipe.yaml").write_text("stage: pretrain\n")
        with pytest.raises(
            CheckpointError, match=r"folder of runs: name one of the runs in it: .*runs/one(\.|, .*two)"
        ):
            find_weights(tmp_path / "runs")
    assert [run.path.name for run in RunFolder.rounds(tmp_path / "runs" / "two")] == ["test-1-seed-0"]


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "README.md", "latest"])
def test_a_file_of_another_kind_is_not_called_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 a zip" if name == "model.pt2" else b"\x08\n of another kind")
    with pytest.raises(CheckpointError, match=r"is no file of weights.*name a run or an exported folder"):
        find_weights(tmp_path / name)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(CheckpointError, match=f"name its run, {tmp_path}"):
        find_weights(tmp_path / name)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=f"name its folder, {tmp_path}"):
        find_weights(tmp_path / name)
