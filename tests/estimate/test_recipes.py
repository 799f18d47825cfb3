"""Every recipe's step and evaluation on a GPU that is not there: devices and dtypes that fit, and no waits."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gamut.audio.logmel import log_mel
from gamut.errors import RecipeError
from gamut.estimate.answers import Answers
from gamut.estimate.calls import Call
from gamut.estimate.fakes import as_fake, codes_of_kept, surroundings
from gamut.estimate.standin import Records
from gamut.estimate.step import account, objective_of
from gamut.estimate.trace import Trace, tracing
from gamut.estimate.work import work_of
from gamut.features.encoders import OfSpectrograms, OfWhisper
from gamut.features.extract import encode, noise
from gamut.models import whisper
from gamut.models.backbone import build
from gamut.probe.features import Encoder, FrontEnd
from gamut.recipe.find import list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe
from pretrain import asit

CUDA = torch.device("cuda", 0)
SHORT = ("digits/sparse", "whisper_at")
ALL = [
    pytest.param(stage, name, id=f"{stage}/{name}", marks=[] if name in SHORT else [pytest.mark.long])
    for stage in ("pretrain", "finetune")
    for name in list_recipes(stage)
]


class NoWeights(whisper.Whisper):
    """Whisper-small's encoder of two blocks, whose weights nobody has looked for."""

    def __init__(self, device: torch.device) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__(WhisperEncoder(WhisperConfig(d_model=768, encoder_attention_heads=12, encoder_layers=2)))
        self.to(device)


def small(stage: str, name: str) -> Recipe:
    """The recipe with two blocks, where it has any, on two packs."""
    words = ("data=nowhere", "compute.compile=false", "loader.packs_per_forward=2")
    try:
        return load_recipe(stage, name, (*words, "model.depth=2"))
    except RecipeError:
        return load_recipe(stage, name, words)


@pytest.fixture(autouse=True)
def what_is_not_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.end_to_end.load_whisper", lambda path, *, device="cpu", **_: NoWeights(device))
    known = Records.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Records], recipe: Recipe) -> Records:
        with contextlib.suppress(RecipeError):
            return known(cls, recipe)
        return cls(4, 25, 384, "whisper-tiny")

    monkeypatch.setattr(Records, "of", classmethod(of))


def waits(calls: list[Call]) -> list[str]:
    return [f"{call.name} at {call.line}" for call in calls if call.wait]


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_a_step_and_an_evaluation(stage: str, name: str) -> None:
    recipe = small(stage, name)
    work = work_of(recipe, 8)
    mine = account(recipe, work, "cuda")
    assert not mine.guessed
    assert not waits(mine.phase("prepare", "micro"))
    batch = work.batch()

    def evaluate(trace: Trace, fake: Any) -> None:
        objective: Any = objective_of(recipe, work, CUDA)
        trace.phase = "evaluate"
        if stage == "finetune":
            scores = objective.logits(as_fake(fake, batch))
            assert (scores.shape, scores.dtype) == ((batch.clips, work.sounds.classes), torch.float32)
        elif isinstance(objective, asit.Asit):
            front = FrontEnd(-4.0, 4.0, recipe.front.mode)
            found = Encoder(objective.backbone, front, recipe.precision, CUDA, True)(as_fake(fake, batch))
            assert {(*one.shape,) for one in found.values()} >= {(batch.segments, recipe.model.dim)}

    assert not waits([call for call in followed(evaluate).calls if call.phase == "evaluate"])


def followed(work: Any) -> Trace:
    """What `work`, given the trace and the mode of fake tensors, does on a GPU that is not there."""
    trace = Trace(CUDA, Answers(), False, frozenset(), codes_of_kept())
    with surroundings(False, True), tracing(trace) as fake, torch.no_grad():
        work(trace, fake)
    return trace


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_of_our_own_and_of_whisper(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gamut.features.encoders.digest", lambda module: "")  # of weights, which there are none of
    model = replace(load_recipe("pretrain", "asit_tiny").model, depth=2)

    def work(trace: Trace, fake: Any) -> None:
        front: Any = SimpleNamespace(mean=-4.0, std=4.0, mode="fast")
        small = NoWeights(CUDA).to(whisper.PRECISIONS[precision])
        mine = OfSpectrograms(build(model), front, 160, 5.0, precision, CUDA)
        for encoder in (mine, OfWhisper(small, 5.0, precision, CUDA)):
            trace.phase = "build"  # tables and noise are made on the host
            batch = noise(encoder.policy(2), 2)
            trace.phase = "encode"
            features = encode(encoder, batch, (0, 1), 20)
            assert (features.dtype, features.device.type, features.shape[:2]) == (torch.float32, "cuda", (2, 2))

    assert not waits([call for call in followed(work).calls if call.phase == "encode"])


def test_what_is_made_once_is_not_waited_for() -> None:
    """Tables of the log-mel, which the CUDA tests make while no wait is allowed."""

    def work(trace: Trace, fake: Any) -> None:
        count = torch.tensor([2960]).to(CUDA, non_blocking=True)
        one = torch.ones_like(count)
        trace.phase = "tables"
        log_mel(
            torch.empty(2960, dtype=torch.int16, device=CUDA),
            torch.cat([0 * one, count]),
            count,
            160 * one,
            16 * one,
            (16,),
        )

    calls = [call for call in followed(work).calls if call.phase != "build"]
    assert "copy to device" in {call.name for call in calls}
    assert not waits(calls)
