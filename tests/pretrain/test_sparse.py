"""ASiT that encodes visible patches alone, and sees several masks of a view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from gamut.data.batch import PackedBatch
from gamut.errors import RecipeError
from gamut.estimate.step import account
from gamut.estimate.work import work_of
from gamut.models.layout import layout
from gamut.models.pooling import band_means
from gamut.plan import Clips, plan_epoch
from gamut.recipe import schema
from gamut.recipe.check import check
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import training_policy
from pretrain import asit
from pretrain.asit import Asit
from pretrain.masking import hide, mask_keys
from pretrain.views import MaskedBatch
from tests.asit import NOW, RECIPE, assert_neighbours_do_not_matter, assert_same_step, objective, whole_step
from tests.close import assert_close
from tests.packs import packed, part
from tests.pretrain import sparse_reference as reference

LENGTHS = [64, 64, 48, 48, 16, 16, 112, 112, 32, 32]  # frames of two views of five clips
VISIBLE = {"encode": "visible", "visible": 0.5}
SPARSE = {
    "clones": {"clones": 3},
    "visible clones": {**VISIBLE, "clones": 2, "mask_fill": "clip", "weight_koleo": 0.5},
    "inverse blocks": {**VISIBLE, "mask_shape": "inverse", "local_on": "all", "predictor": "blocks"},
    "cross features": {**VISIBLE, "predictor": "cross", "targets": "features", "clones": 2},
    "aligned": {"encode": "visible", "mask_aligned": True, "predictor": "cross"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are so small that a second one waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mixed() -> PackedBatch:
    return packed(LENGTHS, views=2, packs=(3, 2))


def views_of(task: Asit, batch: PackedBatch) -> MaskedBatch:
    return task.prepare(batch, NOW).inputs


@pytest.mark.parametrize("changes", [{}, {"weight_koleo": 0.5, "heads": "separate"}], ids=str)
def test_with_nothing_hidden_it_is_the_dense_objective_bit_for_bit(changes: dict[str, object]) -> None:
    dense, sparse = (objective(mask_target=0.0, encode=encode, **changes) for encode in ("all", "visible"))
    one, other = (whole_step(task, [mixed(), packed([], views=2)]) for task in (dense, sparse))
    assert one[:2] == other[:2]
    assert all(torch.equal(gradient, other[2][name]) for name, gradient in one[2].items())


@pytest.mark.parametrize("changes", SPARSE.values(), ids=SPARSE)
def test_a_clips_numbers_do_not_depend_on_its_neighbours(changes: dict[str, object]) -> None:
    changes = {**changes, "weight_koleo": 0.0, "mask_fill": "zeros"}  # by which a clip meets the others of its pack
    assert_neighbours_do_not_matter(objective(**changes), mixed())


@pytest.mark.parametrize("changes", SPARSE.values(), ids=SPARSE)
def test_a_step_does_not_depend_on_how_it_is_split(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether the lists of patches have a fixed size, as on a GPU."""
    batch = mixed()
    one = whole_step(objective(**changes), [batch])
    monkeypatch.setattr(asit, "masked_batch", partial(asit.masked_batch, fixed=True))
    two = whole_step(objective(**changes), [part(batch, 0, 3), packed([], views=2), part(batch, 3, 5)])
    assert_same_step(two, one)


@pytest.mark.parametrize("visible", [0.5, 0.3, 0.01])
def test_the_student_gets_the_patches_that_are_not_wholly_hidden(visible: float) -> None:
    """Its layout has just these, in their places, and of the loss there are those of them that are masked in part."""
    views = views_of(objective(encode="visible", visible=visible), mixed())
    masks, kept = views.own.masks, views.own.kept
    counts = tuple(frames // 2 - int(frames // 2 * (1 - visible)) for frames in LENGTHS)
    assert kept.sizes == counts == tuple(kept.counts.tolist())
    assert torch.equal(kept.patch, (~masks.patches.all(1)).nonzero()[:, 0])
    assert views.student.lengths == tuple(count + 1 for count in counts)
    assert torch.equal(views.student.time, views.teacher.time[kept.patch])
    assert torch.equal(views.student.frequency, views.teacher.frequency[kept.patch])
    assert torch.equal(views.hidden, views.own.patches[kept.patch])
    assert torch.equal(views.local, (masks.touched & ~masks.patches.all(1)).nonzero()[:, 0])
    assert torch.equal(masks.patches.any(1), masks.touched)
    assert torch.equal(masks.pixels.view(-1, 16, 8, 16).transpose(1, 2).reshape(-1, 256), masks.patches)


def test_masks_are_adjusted_no_more_than_they_must() -> None:
    dense, fewer, more = (
        views_of(objective(**changes), packed([96] * 8, views=2)).own.masks.patches.all(1)
        for changes in ({}, {"encode": "visible", "visible": 0.3}, {"encode": "visible", "visible": 0.9})
    )
    assert int((~fewer).sum()) == 8 * (48 - int(48 * 0.7))
    assert (dense <= fewer).all()  # what was hidden is, and more
    assert int((~more).sum()) == 8 * 44
    assert (more <= dense).all()


def test_inverse_masks_leave_blocks() -> None:
    """So about a share of 1 - mask_target stays, together: neighbours are visible far more often than by chance."""
    segments, frames = 200, 288
    zero = torch.zeros(segments, dtype=torch.int64)
    lengths, sizes = zero + frames, (frames,) * segments
    clean = torch.ones(sum(sizes) // 2, 256)
    options = schema.Asit(mask_shape="inverse", mask_target=0.8, mask_aligned=True)
    keys = mask_keys(0, 0, torch.arange(segments), zero, zero)
    hidden = hide(clean, layout(lengths, sizes, False), lengths, sizes, keys, 2, (segments // 2,), options)
    assert torch.equal(hidden.patches == 0, hidden.masks.patches)
    assert torch.equal(hidden.masks.patches.all(1), hidden.masks.touched)
    seen = ~hidden.masks.touched.view(segments, frames // 16, 8)
    assert 0.2 <= seen.float().mean() < 0.25
    assert (seen.flatten(1).float().mean(1) >= 0.2).all()
    pairs = (seen[:, 1:] & seen[:, :-1]).float().mean() / seen.float().mean()
    assert pairs > 0.5


def test_every_mask_of_a_view_is_its_own_and_the_first_is_the_one_that_it_had() -> None:
    batch = mixed()
    one, three = (views_of(objective(clones=clones), batch) for clones in (1, 3))
    first, *others = three.own.masks.patches.chunk(3)
    assert torch.equal(first, one.own.masks.patches)
    assert torch.equal(three.drop_keys[:10], one.drop_keys)
    assert len(set(three.drop_keys.tolist())) == 30
    for other in others:
        assert (first != other).float().mean() > 0.2
    assert torch.equal(three.clean, one.clean)
    assert three.student.lengths == one.student.lengths * 3
    again = views_of(objective(clones=3), part(batch, 2, 4))
    a, b = sum(LENGTHS[:4]) // 2, sum(LENGTHS[:8]) // 2
    for mine, whole in zip(again.own.masks.patches.chunk(3), three.own.masks.patches.chunk(3)):
        assert torch.equal(mine, whole[a:b])


def test_the_teacher_hears_a_view_once_and_its_centres_count_it_once() -> None:
    runs: list[int] = []
    task, plain = objective(clones=3, local_on="all"), objective(local_on="all")
    task.teacher.register_forward_hook(lambda module, given, out: runs.append(len(given[0])))
    batch = mixed()
    _, metrics, _ = whole_step(task, [batch])
    _, before, _ = whole_step(plain, [batch])
    assert runs == [sum(LENGTHS) // 2]
    assert task.prepare(batch, NOW).counts.tolist()[1:3] == [3 * sum(LENGTHS) // 2, 3 * 10]
    for name in ("teacher/entropy", "teacher/entropy_data", "teacher/centre_norm", "teacher/centre_norm_data"):
        assert metrics[name] == pytest.approx(before[name], rel=1e-5), name


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_means_of_bands_are_of_the_patches_that_there_are(share: float) -> None:
    views = views_of(objective(encode="visible", visible=share, weight_koleo=1.0), mixed())
    where = views.student
    tokens = torch.randn(where.tokens, 4, generator=torch.Generator().manual_seed(0))
    found = band_means(tokens, where).view(where.segments, 8, 4)
    for segment in range(where.segments):
        for band in range(8):
            own = tokens[where.patch[(where.owner == segment) & (where.frequency == band)]]
            expected = own.mean(0) if len(own) else torch.zeros(4)
            assert_close(found[segment, band], expected, 1e-6)


@pytest.mark.parametrize("changes", [SPARSE["visible clones"], SPARSE["aligned"]], ids=str)
def test_the_plan_counts_what_the_student_encodes(changes: dict[str, object]) -> None:
    views, step = schema.Views(count=2, pad=False), schema.Step(packs=2, tokens=700)
    recipe = replace(RECIPE, views=views, step=step, asit=replace(RECIPE.asit, **changes))
    samples = np.array([(frames - 1) * 160 + 400 for frames in LENGTHS[::2]])
    rows = np.arange(5)
    clips = Clips(row=rows, clip_id=rows.astype(np.uint64), shard=rows.astype(np.int32) * 0, samples=samples, size=rows)
    epoch = plan_epoch(clips, 0, 0, training_policy(recipe))
    assert epoch.pack_tokens.max() <= 700
    for at, row in enumerate(epoch.row):
        made = views_of(objective(**changes), packed(LENGTHS[2 * row : 2 * row + 2], views=2))
        assert made.student.tokens == epoch.tokens[at]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encode": "visible"}, "asit.visible, the share that is encoded"),
        ({"visible": 0.5}, "set that too"),
        ({**VISIBLE, "mask_target_least": 0.5}, "as many patches of every view"),
        ({**VISIBLE, "mask_copied": 0.5}, "as many patches of every view"),
        ({**VISIBLE, "mask_target": 0.0}, "asit.visible needs masks"),
        ({"encode": "visible", "mask_aligned": True}, "nothing is left to reconstruct"),
        ({"predictor": "cross"}, "patches that are not encoded"),
        ({**VISIBLE, "visible": 1.0, "predictor": "blocks"}, "asit.visible below 1"),
        ({**VISIBLE, "predictor": "blocks", "weight_reconstruction": 0.0, "weight_local": 0.0}, "is trained by"),
        ({**VISIBLE, "predictor": "blocks", "predictor_dim": 6}, "multiple of 4"),
        ({"targets": "features", "heads": "separate"}, "local loss without prototypes"),
        ({"target_blocks": 1}, "are of asit.targets features"),
        ({"mask_shape": "inverse", "mask_target": 0.001}, "at least 0.01"),
        ({"mask_shape": "inverse", "mask_copied": 0.5}, "asit.mask_copied must be 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(changes: dict[str, object], said: str) -> None:
    recipe = replace(RECIPE, asit=replace(RECIPE.asit, **changes), run=schema.Run(name="sparse"))
    with pytest.raises(RecipeError, match=said):
        check(recipe)
    with pytest.raises(RecipeError, match=r"set views\.local_count to 0"):
        check(replace(recipe, views=replace(recipe.views, local_count=2, local_frames=32), asit=schema.Asit(clones=2)))


def test_a_picture_shows_what_is_predicted_and_nothing_where_nothing_is() -> None:
    """Of the first mask of each view."""
    batch = packed([64, 48])
    for changes, everywhere in (({}, False), ({"predictor": "blocks", "clones": 2}, True)):
        task = objective(**VISIBLE, **changes)
        clean, hidden, rebuilt = task.rebuild(batch, NOW)
        assert clean.shape == hidden.shape == rebuilt.shape == (56, 256)
        assert torch.equal(hidden, views_of(task, batch).own.masks.patches[:56])
        assert torch.equal(rebuilt.any(1), ~hidden.all(1) | torch.tensor(everywhere))


@pytest.mark.parametrize("targets", ["prototypes", "features"])
def test_a_teacher_that_says_the_same_of_all_patches_is_a_collapse(targets: str) -> None:
    task = objective(**VISIBLE, targets=targets, weight_global=0.0)
    for spoilt in (False, True):
        if spoilt:
            with torch.no_grad():
                for name, parameter in task.teacher.backbone.named_parameters():
                    if "blocks" in name or "norm" in name or "patch_embed" in name or "pos_embed" in name:
                        parameter.zero_()
                task.teacher.backbone.patch_embed.proj.bias.copy_(torch.arange(32.0))
                task.teacher.backbone.norm.bias.copy_(torch.arange(32.0))
        _, metrics, _ = whole_step(task, [packed([64] * 4, views=2)])
        assert bool(task.collapsed(metrics)) == spoilt
        assert (metrics["teacher/spread_share_data"] < 0.001) == spoilt


SETTINGS = {
    "visible": {**VISIBLE},
    "clones of all": {"clones": 3, "heads": "partly", "prototypes_data": 20, "weight_koleo": 0.3},
    "blocks": {**VISIBLE, "predictor": "blocks", "clones": 2},
    "cross": {**VISIBLE, "predictor": "cross", "weight_koleo": 0.5, "mask_aligned": True},
    "features": {**VISIBLE, "predictor": "cross", "predictor_dim": 8, "targets": "features", "target_blocks": 1},
    "inverse": {
        **{"encode": "visible", "mask_shape": "inverse", "mask_target": 0.8, "mask_aligned": True, "clones": 2},
        **{"predictor": "blocks", "targets": "features", "local_on": "all"},
    },
}
MODELS = {
    "features": {"pooling": "mean"},
    "inverse": {"pooling": "attention", "pooling_heads": 2, "positions": "factorised"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_those_of_a_dense_padded_loop(name: str) -> None:
    model = replace(RECIPE.model, drop_path=0.0, **MODELS.get(name, {}))
    recipe = replace(RECIPE, model=model, asit=replace(RECIPE.asit, **SETTINGS[name]))
    check(replace(recipe, step=schema.Step(clips=5), run=schema.Run(name="sparse")))
    task = Asit(recipe, -4.0, 4.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    task.centres.classes.value = torch.randn(24, generator=generator) * 0.05
    task.centres.data.value = torch.randn(recipe.asit.prototypes_data or 24, generator=generator) * 0.05
    batch = packed([48, 48, 16, 16, 32, 32], views=2, packs=(2, 1))
    found, _, gradients = whole_step(task, [batch])
    student, teacher = (
        {key: value.detach().double().requires_grad_() for key, value in module.named_parameters()}
        for module in (task.model, task.teacher)
    )
    centres = task.centres.classes.value.double(), task.centres.data.value.double()
    expected = reference.loss(recipe, student, teacher, centres, views_of(task, batch), batch.sizes, (2, 1))
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-6)
    assert gradients.keys() == student.keys()
    for key, gradient in gradients.items():
        assert_close(gradient, student[key].grad.float(), 1e-5, key)


def test_a_step_costs_two_fifths_of_the_papers() -> None:
    """Operations a clip, by the account of a step: matrix products and attention of student, teacher and heads."""
    costs = []
    for name in ("asit_b", "asit_b_sparse"):
        recipe = load_recipe(
            "pretrain", name, ("data=nowhere", "step.packs=1", "step.clips=1", "precision=fp32", "model.depth=4")
        )
        assert (recipe.asit.clones, round(1 - recipe.asit.unseen, 3)) == (1, 0.3 if "sparse" in name else 1.0)
        work = work_of(recipe, 1, 16)
        costs.append(account(recipe, work, "cpu").flops / work.clips)
    assert costs[1] <= 0.4 * costs[0]
