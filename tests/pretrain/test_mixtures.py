"""ASiT on mixtures of two clips, of which the teacher hears each alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from gamut.data.batch import Hole, PackedBatch
from gamut.errors import RecipeError
from gamut.estimate.step import account
from gamut.estimate.work import work_of
from gamut.recipe import schema
from gamut.recipe.check import check
from gamut.recipe.load import load_recipe
from pretrain import asit
from pretrain.asit import Asit
from pretrain.views import MaskedBatch
from tests.asit import NOW, RECIPE, assert_neighbours_do_not_matter, assert_same_step, objective, whole_step
from tests.close import assert_close
from tests.packs import packed, part, with_partners
from tests.pretrain import sparse_reference as reference

LENGTHS = [64, 64, 48, 48, 16, 16, 112, 112, 32, 32]  # frames of two views of five clips
OTHERS = [64, 48, 0, 0, 16, 16, 32, 16, 0, 0]  # of the partners: as long, or shorter than the view
VISIBLE = {"encode": "visible", "visible": 0.5}
SETTINGS = {
    "dense": {},
    "visible clones": {**VISIBLE, "clones": 2, "weight_koleo": 0.3, "heads": "partly", "prototypes_data": 20},
    "blocks": {**VISIBLE, "predictor": "blocks", "local_on": "all", "heads": "separate"},
    "cross features": {**VISIBLE, "predictor": "cross", "targets": "features", "target_blocks": 1, "clones": 2},
    "aligned": {"encode": "visible", "mask_aligned": True, "predictor": "cross", "weight_koleo": 0.5},
    "inverse": {
        **{"encode": "visible", "mask_shape": "inverse", "mask_target": 0.8, "mask_aligned": True, "clones": 2},
        **{"predictor": "blocks", "targets": "features", "local_on": "all"},
    },
}
MODELS = {
    "cross features": {"pooling": "mean"},
    "inverse": {"pooling": "attention", "pooling_heads": 2, "positions": "factorised"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are so small that a second one waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mixed() -> PackedBatch:
    return with_partners(packed(LENGTHS, views=2, packs=(3, 2)), OTHERS)


def views_of(task: Asit, batch: PackedBatch) -> MaskedBatch:
    return task.prepare(batch, NOW).inputs


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_those_of_a_dense_padded_loop(name: str) -> None:
    model = replace(RECIPE.model, drop_path=0.0, **MODELS.get(name, {}))
    recipe = replace(RECIPE, model=model, asit=replace(RECIPE.asit, mixtures=0.5, **SETTINGS[name]))
    check(replace(recipe, step=schema.Step(clips=5), run=schema.Run(name="mixtures")))
    task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    task.centres.classes.value = torch.randn(24, generator=generator) * 0.05
    task.centres.data.value = torch.randn(recipe.asit.prototypes_data or 24, generator=generator) * 0.05
    plain, others = packed([48, 48, 16, 16, 64, 64], views=2, packs=(2, 1)), [48, 16, 0, 0, 32, 64]
    batch = with_partners(plain, others)
    found, _, gradients = whole_step(task, [batch])
    student, teacher = (
        {key: value.detach().double().requires_grad_() for key, value in module.named_parameters()}
        for module in (task.model, task.teacher)
    )
    centres = task.centres.classes.value.double(), task.centres.data.value.double()
    sounds = task._heard(batch)
    pieces = iter(sounds.partners.split([size // 2 for size in others if size]))
    apart = task.front_end(plain), {view: next(pieces) for view, size in enumerate(others) if size}
    views = views_of(task, batch)
    shown = ~views.own.masks.patches
    assert torch.equal(views.own.patches[shown], sounds.mixed.repeat(recipe.asit.clones, 1)[shown])
    assert not torch.equal(sounds.mixed, sounds.own)
    expected = reference.loss(recipe, student, teacher, centres, views, batch.sizes, (2, 1), apart)
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-6)
    assert gradients.keys() == student.keys()
    for key, gradient in gradients.items():
        assert_close(gradient, student[key].grad.float(), 1e-5, key)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_where_nothing_is_mixed_it_is_the_objective_without_mixtures_bit_for_bit(changes: dict[str, object]) -> None:
    plain = packed(LENGTHS, views=2, packs=(3, 2))
    lost = replace(with_partners(plain, [0] * 10), partner_holes=(Hole(7, "dog", "checksum"),) * 2)
    one = whole_step(objective(**changes), [plain, packed([], views=2)])
    other = whole_step(objective(mixtures=0.5, **changes), [lost, with_partners(packed([], views=2), [])])
    assert other[1].pop("mixtures/partner_holes") == 2
    assert one[:2] == other[:2]
    assert all(torch.equal(gradient, other[2][name]) for name, gradient in one[2].items())


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_clips_numbers_do_not_depend_on_its_neighbours(changes: dict[str, object]) -> None:
    assert_neighbours_do_not_matter(objective(**{**changes, "mixtures": 0.5, "weight_koleo": 0.0}), mixed())


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_step_does_not_depend_on_how_it_is_split(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether the lists of patches have a fixed size, as on a GPU."""
    batch = mixed()
    one = whole_step(objective(mixtures=0.5, **changes), [batch])
    monkeypatch.setattr(asit, "masked_batch", partial(asit.masked_batch, fixed=True))
    pieces = [part(batch, 0, 3), with_partners(packed([], views=2), []), part(batch, 3, 5)]
    two = whole_step(objective(mixtures=0.5, **changes), pieces)
    assert_same_step(two, one)


def test_what_is_rebuilt_is_the_larger_of_both_and_after_the_partner_the_clip() -> None:
    task, batch = objective(mixtures=0.5), mixed()
    views, sounds = views_of(task, batch), task._heard(batch)
    first, other = 0, iter(sounds.partners.split([size // 2 for size in OTHERS if size]))
    for size, heard in zip(LENGTHS, OTHERS):
        own, found = (each[first : first + size // 2] for each in (sounds.own, views.clean))
        if heard:
            partner, end = next(other), heard // 2
            assert torch.equal(found[:end], torch.maximum(own[:end], partner))
            assert torch.equal(found[end:], own[end:])
        else:
            assert torch.equal(found, own)
        first += size // 2
    assert views.teacher.lengths == tuple(1 + size // 2 for size in [*LENGTHS, *filter(None, OTHERS)])
    assert len(views.taught) == len(views.clean) + sum(OTHERS) // 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": schema.Views(count=2, frames=96, local_count=2, local_frames=32)}, r"asit\.mixtures .*local_count"),
        ({"augment": schema.Augment(mixup=0.5)}, r"asit\.mixtures .*augment\.mixup"),
    ],
    ids=["local crops", "mixup"],
)
def test_what_cannot_be_is_said(changes: dict[str, object], said: str) -> None:
    recipe = replace(RECIPE, asit=schema.Asit(mixtures=0.5), step=schema.Step(clips=5), run=schema.Run(name="mixtures"))
    with pytest.raises(RecipeError, match=said):
        check(replace(recipe, **changes))


@pytest.mark.long
def test_an_account_has_what_the_teacher_hears_besides() -> None:
    """Of clips that are all as long, in proportion to those that are mixed; the student's part stays as it is."""
    found = []
    for share in (0.0, 0.5, 1.0):
        words = ("data=nowhere", f"asit.mixtures={share}", "step.clips=8", "asit.clones=2", "asit.predictor=cross")
        recipe = load_recipe("pretrain", "esc10/sparse_mixtures", words)
        work = work_of(recipe, 1, 16)
        draws = slice(*work.epoch.pack_offset[work.micro[0] :][:2])
        mixed = 0.0 if work.epoch.partner is None else float((work.epoch.partner[draws] >= 0).mean())
        found.append((mixed, account(recipe, work, "cpu").flops, work.tokens))
    assert (found[0][0], found[2][0]) == (0.0, 1.0)
    assert 0 < found[1][0] < 1
    assert found[0][2] == found[1][2] == found[2][2]
    more = [flops - found[0][1] for _, flops, _ in found]
    assert more[1] == pytest.approx(found[1][0] * more[2], rel=0.02)
    assert 0.2 < more[2] / found[0][1] < 0.35


def test_the_recipe_with_mixtures_is_the_sparse_one_but_for_them() -> None:
    plain, mixtures = (
        load_recipe("pretrain", f"esc10/{name}", ("data=nowhere",)) for name in ("sparse", "sparse_mixtures")
    )
    assert mixtures.asit.mixtures == 0.5
    assert replace(mixtures, asit=replace(mixtures.asit, mixtures=0.0), run=plain.run) == plain
