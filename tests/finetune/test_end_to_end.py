"""A Whisper and its head as one network: the features of the cache, gradients to both, the head much faster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.end_to_end import EndToEnd, TaggingWhisper, waveforms
from gamut.errors import RecipeError
from gamut.features.extract import pool
from gamut.models.tagger import Tagger, load_tagger
from gamut.models.weights import load_weights
from gamut.models.whisper import load_whisper
from gamut.recipe import schema
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import training_policy
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.run import convert
from gamut.train.objective import Moment
from launchers.corpus import synthesise
from tests.analyse.speech_models import tiny_whisper
from tests.close import assert_close
from tests.packs import packed
from tests.train.ranks import run

from .tuning import tune

NOW = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.0)
SMALL = ["head.seconds=1", "views.frames=112", "head.pool=10", "head.dim=8", "precision=fp32"]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


def recipe(whisper: Path, *words: str) -> schema.Recipe:
    return load_recipe("finetune", "whisper_at_end_to_end", [f"encoder={whisper}", *SMALL, *words])


def task(whisper: Path, *words: str) -> EndToEnd:
    return EndToEnd(recipe(whisper, *words), 5, list("abcde"), seed=0, device=torch.device("cpu"))


def test_the_recipe_covers_the_paper_s_window() -> None:
    found = load_recipe("finetune", "whisper_at_end_to_end")
    assert 10 <= found.optim.head_scale <= 100
    assert (found.head.seconds, found.head.pool, found.head.dim, found.features) == (10, 20, 512, "")
    assert not training_policy(found).cached
    with pytest.raises(RecipeError, match=r"covered by views\.frames = 512 at 10 ms"):
        load_recipe("finetune", "whisper_at_end_to_end", ["head.seconds=5"])
    with pytest.raises(RecipeError, match="come from a frozen encoder"):
        load_recipe("finetune", "whisper_at_end_to_end", ["features=cache"])


def test_the_network_sees_what_a_cache_of_its_encoder_holds(whisper: Path) -> None:
    objective = task(whisper)
    batch = packed([112, 112], [[1], [3]])
    frozen = load_whisper(whisper)
    window = batch.waveform.view(2, -1)[:, :16000].float() / 32768
    outputs: list[torch.Tensor] = []
    frozen(frozen.log_mel(window), lambda number, output: outputs.append(pool(output, 10)))
    features = torch.stack(outputs, 1)
    assert tuple(features.shape) == (2, *objective.shape) == (2, 2, 5, 16)
    network = objective.model
    assert isinstance(network, TaggingWhisper)
    assert_close(objective.logits(batch), network.tagger(features))


def test_a_clip_is_mixed_without_its_mean_and_is_itself_alone() -> None:
    clips = packed([16, 16])
    other = packed([16], seed=5).waveform[:2000] + 100
    mixed = replace(
        clips, partner_waveform=other, partner_offset=torch.tensor([0, 0, 2000]), partner_row=torch.tensor([-1, 4]),
        partner_weight=torch.tensor([1.0, 0.25]), partner_label_offset=torch.tensor([0, 0, 1]),
        partner_label=torch.tensor([2]),
    )  # fmt: skip
    x = clips.waveform.view(2, -1).float() / 32768
    found = waveforms(mixed, 2560)
    assert torch.equal(found[0], x[0, :2560])
    added = other.float() / 32768
    expected = 0.25 * (x[1] - x[1].mean())
    expected[:2000] += 0.75 * (added - added.mean())
    assert_close(found[1], expected[:2560], 1e-6)


def test_encoder_and_head_learn_at_their_own_rates(whisper: Path) -> None:
    objective = task(whisper)
    loss, _ = objective.loss(
        objective.model, objective.prepare(packed([112, 112], [[1], [3]]), NOW), {"clips_with_labels": 2.0}, NOW
    )
    loss.backward()
    still = {name for name, one in objective.model.named_parameters() if one.grad is None}
    assert still == {
        f"whisper.encoder.{name}" for name in ("embed_positions.weight", "layer_norm.weight", "layer_norm.bias")
    }
    encoder, head = objective.parameter_groups()
    assert (encoder.get("lr_scale", 1.0), head["lr_scale"]) == (1.0, 50)
    grouped = {id(one) for group in (encoder, head) for one in group["params"]}
    assert grouped == {id(one) for one in objective.model.parameters() if one.requires_grad}


def test_an_empty_pack_reaches_every_parameter(whisper: Path) -> None:
    objective = task(whisper)
    loss, _ = objective.loss(objective.model, objective.prepare(packed([], []), NOW), {"clips_with_labels": 3.0}, NOW)
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad is not None for one in objective.model.parameters() if one.requires_grad)


@pytest.mark.parametrize("activations", ["recompute", pytest.param("keep", marks=pytest.mark.long)])
def test_it_trains_through_the_command(whisper: Path, tmp_path: Path, activations: str) -> None:
    convert("esc50", Esc50().list(synthesise(tmp_path / "corpus", 20, seconds=0.5)), tmp_path / "shards")
    line = ["whisper_at_end_to_end", f"encoder={whisper}", f"data={tmp_path / 'shards'}", *SMALL, "epochs=2"]
    line += ["folds.column=fold", "folds.train=null", "folds.test=[[1]]", "finetune.loss=ce", "plan.weights="]
    line += ["finetune.average_from=2", "step.packs=2", "step.clips=4", "loader.workers=0", "track.mlflow=off"]
    line += [f"run.folder={tmp_path}", "run.threads=1", f"compute.activations={activations}"]
    assert run(1, tune, line) == [0]
    folder = tmp_path / "whisper_at_end_to_end" / "test-1-seed-0"
    losses = [
        json.loads(text)["loss"] for text in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in text
    ]
    assert len(losses) == 4
    state, note = load_weights(folder / "best.safetensors")
    moved = state["whisper.encoder.layers.1.fc1.weight"] - load_whisper(whisper).encoder.layers[1].fc1.weight
    assert moved.abs().max() > 0
    head = Tagger(schema.Head("tl_tr", 8), 2, 16, len(note["encoder"]["labels"]))
    assert load_tagger(head, folder).prefix == "average.tagger."  # without validation folds: the last epoch's mean
    assert load_tagger(head, folder / "best.safetensors").prefix == "tagger."
