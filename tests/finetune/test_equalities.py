"""Packing changes nothing, from the waveforms of real shards through front end and classifier to logits and gradients.

Lengths are odd on purpose: shorter than a window, under one patch, exactly one patch, a budget's length (30 s), longer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.evaluation import evaluate
from finetune.objective import Classify
from gamut.data.loader import Loader
from gamut.errors import PlanError
from gamut.evaluate.scores import Scores
from gamut.models import pooling as pooling_module
from gamut.models import vit as vit_module
from gamut.models.attention import attention, pooling_attention
from gamut.plan import Epoch, plan_epoch, plan_evaluation
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy, training_policy
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.train.objective import Moment
from gamut.train.world import World
from tests.train.ranks import run

NOW = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.0)
THIRTY = 480_000  # samples, 30 s: 2,992 frames, 1,496 patches
SAMPLES = (300, 2000, 2800, 2959, 2960, 5000, 9000, 16_000, 24_001, 48_000, THIRTY, 560_000)
ELASTIC = schema.Model(
    dim=48, depth=2, heads=3, positions="factorised", pooling="attention", pooling_heads=4, table_frames=1024,
    drop_path=0.0,
)  # fmt: skip
AST = dataclasses.replace(
    ELASTIC, positions="learned", pooling="cls", distilled=True, stride=10, table_like="ast", table_frames=96
)
FIXED = schema.Views(pad_to=96, pad_with="zero", random=False)  # a standard AST cuts or pads


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "set"
    rng = np.random.default_rng(0)
    for number, samples in enumerate(SAMPLES):
        path = source / ("bell", "dog", "rain")[number % 3] / f"sound{number:02d}.wav"
        path.parent.mkdir(exist_ok=True)
        tone = 8000 * np.sin(np.arange(samples) * (0.02 + 0.05 * number)) + rng.normal(scale=300, size=samples)
        soundfile.write(path, tone.round().astype(np.int16), 16000, subtype="PCM_16")
    assert shards(["convert", "folder", str(source), str(folder), "--clips-per-shard", "5", "--workers", "1"]) == 0
    return Index.open(folder)


def recipe(model: schema.Model = ELASTIC, **sections: object) -> schema.Recipe:
    given = {"views": schema.Views(random=False, pad=False), "step": schema.Step(packs=4, tokens=1497)} | sections
    return schema.Recipe(stage="finetune", model=model, **given)  # type: ignore[arg-type]


def task(of: schema.Recipe) -> Classify:
    made = Classify(of, 3, -4.0, 4.0, seed=0, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for parameter in made.model.parameters():  # larger than fresh ones, so that attention is not nearly even
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return made


def scores(made: Classify, index: Index, epoch: Epoch, world: int = 1, per_forward: int = 1) -> dict[int, torch.Tensor]:
    """Logits of every clip (row of the index), from the shares of all ranks."""
    found: dict[int, torch.Tensor] = {}
    for rank in range(world):
        for _, batches in Loader(index, epoch, rank=rank, world=world, per_forward=per_forward, workers=0):
            for batch in batches:
                assert not batch.holes
                found |= dict(zip(batch.row.tolist(), made.logits(batch)))
    return found


def one_at_a_time(made: Classify, index: Index, of: schema.Recipe) -> dict[int, torch.Tensor]:
    alone = dataclasses.replace(of, step=schema.Step(packs=4, clips=1))
    return scores(made, index, plan_epoch(index.table(), 0, 0, training_policy(alone)))


def same(mine: dict[int, torch.Tensor], theirs: dict[int, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert sorted(mine) == sorted(theirs)
    for row, logits in mine.items():
        assert (logits - theirs[row]).abs().max() <= tolerance * max(1.0, theirs[row].abs().max().item()), row


def test_the_lengths_are_the_odd_ones(index: Index) -> None:
    epoch = plan_epoch(index.table(), 0, 0, training_policy(recipe()))
    tokens = dict(zip(epoch.row.tolist(), epoch.tokens.tolist()))
    assert sorted(tokens.values()) == [8] * 6 + [24, 48, 72, 144, 1496, 1496]
    assert epoch.cut == 1  # the longest, at 30 s
    assert epoch.pack_tokens.max() <= 1497
    assert len(tokens) == len(SAMPLES)


@pytest.fixture(
    scope="module", params=["elastic", "elastic-cls", "elastic-mean", "elastic-frames", "elastic-scale-1", "ast"]
)
def case(request: pytest.FixtureRequest, index: Index) -> tuple[schema.Recipe, Classify, dict[int, torch.Tensor]]:
    """A recipe, its classifier, and the logits of all clips one at a time."""
    of = {
        "elastic": recipe(),
        "elastic-cls": recipe(dataclasses.replace(ELASTIC, pooling="cls", positions="learned")),
        "elastic-mean": recipe(dataclasses.replace(ELASTIC, pooling="mean")),
        "elastic-frames": recipe(dataclasses.replace(ELASTIC, pooling="frames")),
        "elastic-scale-1": recipe(dataclasses.replace(ELASTIC, attention_scale=1.0)),
        "ast": recipe(AST, views=FIXED, step=schema.Step(packs=4, clips=2)),
    }[request.param]
    made = task(of)
    return of, made, one_at_a_time(made, index, of)


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(
    tokens=st.integers(1497, 4000), max_clips=st.integers(1, 12), packer=st.sampled_from(["exact", "next_fit"]),
    seed=st.integers(0, 99), world=st.integers(1, 3), per_forward=st.integers(1, 3),
)  # fmt: skip
def test_logits_do_not_depend_on_neighbours_packer_or_world(
    case: tuple[schema.Recipe, Classify, dict[int, torch.Tensor]], index: Index, tokens: int, max_clips: int,
    packer: str, seed: int, world: int, per_forward: int,
) -> None:  # fmt: skip
    of, made, alone = case
    step = schema.Step(packs=4, tokens=tokens, max_clips=max_clips)
    of = dataclasses.replace(of, step=step, plan=schema.PlanOptions(packer=packer))
    epoch = plan_epoch(index.table(), seed, 0, training_policy(of))  # the seed decides who lies beside whom
    same(scores(made, index, epoch, world, per_forward), alone)


def test_an_evaluation_gives_the_same(
    case: tuple[schema.Recipe, Classify, dict[int, torch.Tensor]], index: Index
) -> None:
    of, made, alone = case
    same(scores(made, index, plan_evaluation(index.table(), evaluation_policy(of)), world=2, per_forward=2), alone)


def gradients(made: Classify, batches: list, clips: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step over these micro-batches."""
    made.model.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = made.loss(made.model, made.prepare(batch, NOW), {"clips_with_labels": float(clips)}, NOW)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in made.model.named_parameters()}


def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_module, "attention", functools.partial(attention, backend="dense"))
    monkeypatch.setattr(pooling_module, "pooling_attention", functools.partial(pooling_attention, backend="dense"))


TRAINED: dict[str, Callable[[], schema.Recipe]] = {
    "elastic": lambda: recipe(
        dataclasses.replace(ELASTIC, drop_path=0.3),
        views=schema.Views(random=True, pad=False, resolutions=[1.0, 1.2, 2.0, 4.0]),
        augment=schema.Augment(time_mask=64, time_scale="resolution", frequency_mask=24, drop_tokens=0.1, noise=True),
    ),
    "ast": lambda: recipe(
        dataclasses.replace(AST, drop_path=0.3),
        views=FIXED,
        augment=schema.Augment(time_mask=32, frequency_mask=24, drop_tokens=0.1),
    ),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_gradients_packed_are_those_one_at_a_time_and_with_a_dense_mask(
    index: Index, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training step with everything that is random: drop-path, SpecAugment, noise, token dropout, resolution."""
    of = TRAINED[kind]()
    made = task(of)
    made.model.train()

    def batches(step: schema.Step) -> list:
        policy = training_policy(dataclasses.replace(of, step=step))
        epoch = plan_epoch(index.table(), 0, 0, policy)
        loader = Loader(index, epoch, rank=0, world=1, per_forward=2, workers=0)
        return [batch for _, joined in loader for batch in joined]

    packed = batches(schema.Step(packs=4, tokens=2000))
    assert max(batch.clips for batch in packed) > 2
    loss, together = gradients(made, packed, len(SAMPLES))
    others = [gradients(made, batches(schema.Step(packs=4, clips=1)), len(SAMPLES))]
    dense(monkeypatch)
    others.append(gradients(made, packed, len(SAMPLES)))
    for other, theirs in others:
        assert other == pytest.approx(loss, rel=1e-6)
        for name, gradient in together.items():
            scale = max(theirs[name].abs().max().item(), 1e-3)  # keys' biases have none but rounding
            assert (gradient - theirs[name]).abs().max() <= 1e-5 * max(1.0, scale) + 2e-5 * scale, name


def test_bf16_is_within_its_rounding(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed, alone and with a dense mask bf16 gives logits and gradients as near to each other as to those of fp32."""
    of = recipe()
    rough = dataclasses.replace(of, precision="bf16")
    exact, made = task(of), task(rough)
    packed = plan_epoch(index.table(), 0, 0, training_policy(of))
    alone = plan_epoch(
        index.table(), 0, 0, training_policy(dataclasses.replace(of, step=schema.Step(packs=4, clips=1)))
    )

    def both(task: Classify, epoch: Epoch) -> dict[str, torch.Tensor]:
        batches = [
            batch for _, joined in Loader(index, epoch, rank=0, world=1, per_forward=2, workers=0) for batch in joined
        ]
        found = scores(task, index, epoch, per_forward=2)
        return {"logits": torch.stack([found[row] for row in sorted(found)])} | gradients(task, batches, len(SAMPLES))[
            1
        ]

    reference = both(exact, alone)
    ways = {"packed": both(made, packed), "alone": both(made, alone)}
    dense(monkeypatch)
    ways["dense"] = both(made, packed)
    for name, expected in reference.items():
        largest = max(expected.abs().max().item(), 1e-3)  # keys' biases have no gradient but rounding
        for first, second in [("packed", "alone"), ("packed", "dense")]:
            assert (ways[first][name] - ways[second][name]).abs().max() <= 2**-5 * largest, (name, first, second)
        for way, values in ways.items():
            assert values[name].dtype == torch.float32
            assert (values[name] - expected).abs().max() <= 2**-4 * largest, (name, way)


@pytest.mark.parametrize(
    ("views", "step", "said"),
    [
        ({"too_long": "error"}, {"tokens": 1497}, "1 of 12 clips are over `max_samples`, 480000; the longest, in row"),
        ({}, {"tokens": 1495}, "makes 1496 tokens .* 2 of 12 clips are over a pack's budget of 1495. Raise `tokens`"),
        ({"max_seconds": None}, {"tokens": 1497}, "makes 1744 tokens .* shorten the views to 2992 frames"),
    ],
)
def test_a_clip_longer_than_may_be_is_an_error_that_says_what_to_do(
    index: Index, views: dict, step: dict, said: str
) -> None:
    of = recipe(views=schema.Views(random=False, pad=False, **views), step=schema.Step(packs=4, **step))
    with pytest.raises(PlanError, match=said):
        plan_epoch(index.table(), 0, 0, training_policy(of))


def test_a_clip_longer_than_may_be_is_cut_to_what_a_clip_of_that_length_has(index: Index) -> None:
    """35 s cut at 30 s, in frames or in seconds, and at 1,024 frames."""
    made, table = task(recipe()), index.table()
    samples = dict(zip(table.row.tolist(), table.samples.tolist()))
    whole = one_at_a_time(made, index, recipe())
    in_frames = schema.Views(random=False, pad=False, max_frames=2992, max_seconds=None)
    same(one_at_a_time(made, index, recipe(views=in_frames)), whole)
    shorter = one_at_a_time(made, index, recipe(views=schema.Views(random=False, pad=False, max_frames=1024)))
    for row, logits in shorter.items():
        unlike = (logits - whole[row]).abs().max().item()
        assert unlike > 5e-5 if samples[row] >= THIRTY else unlike == 0.0, (row, samples[row], unlike)


@pytest.mark.parametrize("per_forward", [2, 4])
def test_an_evaluation_joins_packs_and_has_the_same_scores(index: Index, per_forward: int) -> None:
    of = recipe(step=schema.Step(packs=4, clips=2))
    made, clips, policy = task(of), index.table(), evaluation_policy(of)
    forwards: list[int] = []
    plain = made.model.register_forward_hook(lambda module, inputs, logits: forwards.append(len(logits)))
    alone = evaluate(made, index, clips, policy, workers=0)
    assert len(forwards) == 6
    forwards.clear()
    joined = evaluate(made, index, clips, policy, workers=2, per_forward=per_forward)
    plain.remove()
    assert len(forwards) == (3 if per_forward == 2 else 2)
    assert sum(forwards) == len(SAMPLES)
    assert np.array_equal(joined.row, alone.row)
    assert np.array_equal(joined.target, alone.target)
    assert np.abs(joined.logits - alone.logits).max() <= 1e-5 * np.abs(alone.logits).max()
    assert joined.seconds > 0
    assert made.model.training


def evaluated(world: World, folder: Path, per_forward: int) -> tuple[Scores, list[int]]:
    """What a rank of a world finds, and the clips of each forward that it made."""
    of, index, forwards = recipe(step=schema.Step(packs=4, clips=2)), Index.open(folder), []
    made = task(of)
    made.model.register_forward_hook(lambda module, inputs, logits: forwards.append(len(logits)))
    return evaluate(made, index, index.table(), evaluation_policy(of), workers=0, per_forward=per_forward), forwards


def test_two_ranks_that_join_packs_have_the_scores_of_one_rank_clips_in_order(index: Index) -> None:
    [(alone, _)] = run(1, evaluated, index.folder, 1)
    (first, mine), (second, others) = run(2, evaluated, index.folder, 2)
    assert mine
    assert others
    assert sum(mine) + sum(others) == len(SAMPLES)
    assert max(mine + others) > 2  # a pack has two
    for scores in (first, second):
        assert scores.row.tolist() == list(range(len(SAMPLES)))
        assert np.array_equal(scores.target, alone.target)
        assert np.abs(scores.logits - alone.logits).max() <= 1e-5 * np.abs(alone.logits).max()
