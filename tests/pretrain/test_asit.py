"""The ASiT objective as a whole: shares, denominators, teacher, replay."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from gamut.data.batch import PackedBatch
from gamut.errors import CheckpointError
from gamut.models.layout import layout
from pretrain import asit
from pretrain.centres import Spread, sum_up
from tests.asit import NOW, RECIPE, assert_same_metrics, objective, whole_step
from tests.close import assert_close
from tests.packs import packed, part


def test_a_step_does_not_depend_on_how_it_is_split() -> None:
    batch = packed([96] * 10, views=2)
    one = whole_step(objective(), [batch])
    two = whole_step(objective(), [part(batch, 0, 1), part(batch, 1, 5)])
    empty = packed([], views=2)
    three = whole_step(objective(), [part(batch, 0, 3), empty, part(batch, 3, 5)])
    for other in (two, three):
        assert other[0] == pytest.approx(one[0], rel=1e-6)
        assert_same_metrics(other[1], one[1])
        for name, gradient in one[2].items():
            if name.endswith("attn.qkv.bias"):
                continue  # its key part has no true gradient, only rounding
            assert_close(other[2][name], gradient, 3e-6, name)


def test_the_step_replays_bit_for_bit() -> None:
    batch = packed([96] * 4, views=2)
    first, second = whole_step(objective(), [batch]), whole_step(objective(), [batch])
    assert first[0] == second[0]
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


def test_losses_are_means_over_what_they_count() -> None:
    task = objective()
    batch = packed([96] * 6, views=2)
    prepared = task.prepare(batch, NOW)
    views = prepared.inputs
    totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
    assert totals["masked_pixels"] == views.own.masks.pixels.sum().item()
    assert totals["local_tokens"] == views.own.masks.touched.sum().item()
    assert totals["class_pairs"] == 6
    task.model.eval()
    loss, metrics = task.loss(task.model, prepared, totals, NOW)
    with torch.no_grad():
        hidden = views.clean.masked_fill(views.own.masks.patches, 0.0)
        everything = torch.arange(len(views.clean))
        cls, data, pixels, _ = task.model(hidden, views.student, None, everything, everything)
        teacher_cls, teacher_data, *_ = task.teacher(views.clean, views.teacher, None, everything)
    error = (pixels - views.clean).abs()[views.own.masks.patches].mean()
    assert metrics["loss/reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)
    target = torch.softmax(teacher_data / 0.07, -1)
    each = -(target * torch.log_softmax(data / 0.1, -1)).sum(-1)
    assert metrics["loss/local"].item() == pytest.approx(each[views.own.masks.touched].mean().item(), rel=1e-5)
    target = torch.softmax(teacher_cls / 0.07, -1)
    swapped = torch.arange(6).view(3, 2).flip(1).flatten()
    each = -(target[swapped] * torch.log_softmax(cls / 0.1, -1)).sum(-1)
    assert metrics["loss/global"].item() == pytest.approx(each.mean().item(), rel=1e-5)
    total = sum(metrics[f"loss/{name}"] for name in ("reconstruction", "local", "global"))
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)


def test_without_masks_reconstruction_is_over_all_pixels() -> None:
    task = objective(mask_target=0.0)
    prepared = task.prepare(packed([96] * 2, views=2), NOW)
    assert prepared.counts[0] == 2 * 96 * 128
    assert prepared.counts[1] == 2 * 48


def test_weights_switch_losses_off() -> None:
    batch = packed([96] * 4, views=2)
    loss, metrics, gradients = whole_step(objective(weight_local=0.0, weight_global=0.0), [batch])
    assert loss == pytest.approx(metrics["loss/reconstruction"], rel=1e-6)
    assert not [name for name in metrics if name.startswith("teacher") or name in ("loss/local", "loss/global")]
    assert not [name for name in gradients if name.startswith("projection")]


def test_teacher_and_centres_move_after_an_applied_step_only() -> None:
    task = objective()
    before = {name: value.clone() for name, value in task.extra_state().items()}
    whole_step(task, [packed([96] * 4, views=2)])
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.01)
    task.skipped_step()
    assert all(torch.equal(before[name], value) for name, value in task.extra_state().items())
    whole_step(task, [packed([96] * 4, views=2)])
    values = task.after_step(NOW)
    after = task.extra_state()
    speed = values["teacher/momentum"]
    for name, parameter in task.model.named_parameters():
        expected = before[f"teacher.{name}"] * speed + parameter.detach() * (1 - speed)
        assert_close(after[f"teacher.{name}"], expected, 1e-6, name)
    assert after["centre.class"].any()
    assert after["centre.data"].any()


def test_data_centre_is_a_mean_over_all_data_tokens() -> None:
    task = objective()
    batch = packed([96] * 4, views=2)
    with torch.no_grad():
        where = layout(batch.frames, batch.sizes, class_token=True)
        clean = task.front_end(batch)
        _, data, *_ = task.teacher(clean, where, None, torch.arange(len(clean)))
    whole_step(task, [batch])
    task.after_step(NOW)
    assert_close(task.centres.data.value, 0.1 * data.mean(0), 1e-6)


def test_spread_is_the_variance_of_all_predictions_of_the_step() -> None:
    """Whatever the split into micro-steps; 0 where all clips are told the same."""
    task, other = objective(), objective()
    batch = packed([96] * 10, views=2)
    _, values, _ = whole_step(task, [batch])
    with torch.no_grad():
        where = layout(batch.frames, batch.sizes, class_token=True)
        logits = task.teacher(task.front_end(batch), where, None, torch.zeros(0, dtype=torch.int64)).classes
    expected = torch.softmax(logits / 0.07, -1).double().var(0, correction=0).sum().item()
    assert values["teacher/spread"] == pytest.approx(expected, rel=2e-3)  # tiny for a fresh network: float32 shows
    assert 0.0 < values["student/spread"] < 1.0
    assert 0.0 < values["teacher/spread_data"] < 1.0
    _, again, _ = whole_step(other, [part(batch, 0, 2), part(batch, 2, 5), packed([], views=2)])
    for name in ("teacher/spread", "student/spread", "teacher/spread_data"):
        assert again[name] == pytest.approx(values[name], rel=2e-3), name
    same = Spread(3, torch.device("cpu"))
    same.add(torch.tensor([[0.5, 0.25, 0.25]] * 4))
    sum_up([same])
    assert (float(same.value), float(same.share)) == (0.0, 0.0)
    same.add(torch.eye(3))
    same.drop()
    same.add(torch.eye(3))
    sum_up([same])
    assert (float(same.value), float(same.share)) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    sum_up([same])  # a step without rows has nothing alike
    assert same.share == 1.0
    same.add(torch.full((2, 3), torch.nan))
    sum_up([same])  # one that is not finite is refused, and the next begins as if it had not been
    assert (float(same.value), float(same.share)) == (pytest.approx(2 / 3), 1.0)
    assert set(objective(weight_global=0.0).centres.spreads) == {"teacher/spread_data"}


def test_extra_state_comes_back_and_misfits_are_named() -> None:
    first, second = objective(), objective()
    whole_step(first, [packed([96] * 4, views=2)])
    first.after_step(NOW)
    saved = {name: value.clone() for name, value in first.extra_state().items()}
    second.load_extra_state(saved)
    assert all(torch.equal(saved[name], value) for name, value in second.extra_state().items())
    with pytest.raises(CheckpointError, match=r"centre\.class"):
        second.load_extra_state({k: v for k, v in saved.items() if k != "centre.class"})
    with pytest.raises(CheckpointError, match=r"centre\.data.*\(3,\)"):
        second.load_extra_state(saved | {"centre.data": torch.zeros(3)})


def with_crops(clips: int) -> PackedBatch:
    """Two views of 96 frames and three local crops of 48 a clip."""
    return replace(packed([96, 96, 48, 48, 48] * clips, views=5), local_views=3)


def test_local_crops_are_clean_and_for_the_student_alone() -> None:
    task = objective()
    batch = with_crops(2)
    prepared = task.prepare(batch, NOW)
    views = prepared.inputs
    assert views.teacher.lengths == (49, 49) * 2
    assert views.student.lengths == (49, 49, 25, 25, 25) * 2
    both = task.front_end(batch)
    crop = torch.ones(len(both), dtype=torch.bool)
    crop[views.number] = False
    assert crop.sum() == 2 * 3 * 24
    assert torch.equal(views.hidden[crop], both[crop])
    assert torch.equal(views.clean, both[~crop])
    plain = replace(packed([96] * 4, views=2), waveform=wave_of_views(batch))
    alone = task.prepare(plain, NOW).inputs
    assert torch.equal(alone.own.masks.patches, views.own.masks.patches)
    assert torch.equal(alone.hidden, views.hidden[views.number])


def wave_of_views(batch: PackedBatch) -> torch.Tensor:
    spans = zip(batch.offset.tolist(), batch.offset[1:].tolist())
    return torch.cat([batch.waveform[a:b] for s, (a, b) in enumerate(spans) if s % 5 < 2])


def test_the_global_loss_of_a_multi_crop_is_the_mean_of_its_terms() -> None:
    """Each of the teacher's two views against every other view of the student: 2 x (1 + 3) terms a clip."""
    task = objective()
    prepared = task.prepare(with_crops(2), NOW)
    views = prepared.inputs
    totals = dict(zip(task.count_names, prepared.counts.tolist(), strict=True))
    assert totals["class_pairs"] == 2 * 8
    task.model.eval()
    _, metrics = task.loss(task.model, prepared, totals, NOW)
    with torch.no_grad():
        nothing = torch.zeros(0, dtype=torch.int64)
        student = task.model(views.hidden, views.student, None, nothing)[0].view(2, 5, -1)
        teacher = task.teacher(views.clean, views.teacher, None, nothing)[0].view(2, 2, -1)
    terms = [
        -(torch.softmax(teacher[clip, t] / 0.07, -1) * torch.log_softmax(student[clip, s] / 0.1, -1)).sum()
        for clip in range(2)
        for t in range(2)
        for s in range(5)
        if s != t
    ]
    assert len(terms) == 16
    assert metrics["loss/global"].item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_a_step_with_local_crops_does_not_depend_on_how_it_is_split() -> None:
    batch = with_crops(3)
    one = whole_step(objective(), [batch])
    two = whole_step(objective(), [part(batch, 0, 1), part(batch, 1, 3)])
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert_same_metrics(two[1], one[1])


def test_a_picture_of_a_batch_with_local_crops_shows_its_views() -> None:
    clean, hidden, rebuilt = objective().rebuild(with_crops(1), NOW)
    assert clean.shape == hidden.shape == rebuilt.shape == (96, 256)


@pytest.mark.parametrize("fill", ["zeros", "noise"])
def test_a_picture_of_masks_shows_what_the_student_is_given(fill: str) -> None:
    batch, task = packed([96, 48], views=1), objective(mask_fill=fill)
    found = task.masked(batch, NOW)
    assert found is not None
    clean, hidden, seen = found
    given = task.prepare(batch, NOW).inputs
    assert torch.equal(seen, given.hidden)
    assert 0.2 < hidden.float().mean() < 0.95
    assert torch.equal(seen[~hidden], clean[~hidden])
    assert bool(seen[hidden].any()) == (fill == "noise")
    assert objective(mask_target=0.0, weight_reconstruction=0.0).masked(batch, NOW) is None


@pytest.mark.parametrize("local_on", ["masked", "all"])
def test_lists_of_fixed_size_come_to_the_same_step(local_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU is given, so that nothing waits for the number of masked patches."""
    batch = packed([96, 96, 48, 48, 160, 160], views=2)
    loss, metrics, gradients = whole_step(objective(local_on=local_on), [batch])
    monkeypatch.setattr(asit, "masked_batch", partial(asit.masked_batch, fixed=True))
    task = objective(local_on=local_on)
    views = task.prepare(batch, NOW).inputs
    assert len(views.rebuild) == len(views.clean) > int(views.own.masks.touched.sum())
    other = whole_step(task, [batch])
    assert other[0] == pytest.approx(loss, rel=1e-6)
    assert_same_metrics(other[1], metrics)
    for name, gradient in gradients.items():
        if not name.endswith("attn.qkv.bias"):
            assert_close(other[2][name], gradient, 3e-6, name)


def test_a_step_in_bf16_runs_the_teacher_that_there_is() -> None:
    """What autocast would make of its weights in every forward is kept, and follows whatever changes them."""
    task = asit.Asit(replace(RECIPE, precision="bf16"), -4.0, 4.0, torch.device("cpu"))
    assert task.narrow is not None

    def same() -> bool:
        assert task.narrow is not None
        pairs = zip(task.narrow.parameters(), task.teacher.parameters(), strict=True)
        return all(torch.equal(mine, other.bfloat16()) for mine, other in pairs)

    assert same()
    state = {name: value + 1.0 for name, value in task.extra_state().items()}
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in task.narrow.parameters()]
    task.after_step(NOW)
    assert same()
    assert not all(torch.equal(*pair) for pair in zip(before, task.narrow.parameters(), strict=True))
    task.load_extra_state(state)
    assert same()
