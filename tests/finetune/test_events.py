"""The loss on frames and clips against a plain computation, and where events are in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from finetune.events import Events
from finetune.objective import multi_hot
from gamut.data.batch import PackedBatch
from gamut.data.events import cells, edges
from gamut.errors import RecipeError
from gamut.numbers import columns
from gamut.recipe import schema
from gamut.recipe.check import check
from gamut.train.objective import Moment
from tests.close import assert_close
from tests.packs import packed, part

MODEL = schema.Model(dim=32, depth=2, heads=2, positions="factorised", pooling="frames", table_frames=96, drop_path=0.0)
NOW = Moment(epoch=0, step=0, step_in_epoch=0, fraction=0.0)
CLASSES = 4
COLUMN = 2560  # samples


def recipe(**sections: object) -> schema.Recipe:
    finetune = sections.pop("finetune", schema.Finetune(loss="bce"))
    views = schema.Views(pad=False)
    return schema.Recipe(stage="finetune", model=MODEL, views=views, finetune=finetune, **sections)  # type: ignore[arg-type]


def objective(**finetune: object) -> Events:
    made = schema.Finetune(loss="bce", **finetune)  # type: ignore[arg-type]
    return Events(recipe(finetune=made), CLASSES, -4.0, 4.0, seed=0, device=torch.device("cpu"))


def with_events(batch: PackedBatch, events: list[list[tuple[int, int, int]]]) -> PackedBatch:
    """The batch with (onset, end, class) of each clip."""
    rows = [row for one in events for row in one]
    found = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    labels = batch.label.split(batch.label_offset.diff().tolist())
    timed = [label.item() in {row[2] for row in own} for own, some in zip(events, labels) for label in some]
    return replace(
        batch,
        label_timed=torch.tensor(timed, dtype=torch.bool),
        event_offset=torch.tensor([0] + [len(one) for one in events]).cumsum(0),
        event_onset=found[:, 0],
        event_end=found[:, 1],
        event=found[:, 2],
    )


def mixture() -> PackedBatch:
    """Four clips: strong; weak; strong with a label that has no time; without a label."""
    clips = packed([64, 48, 32, 16], [[1, 2], [3], [0, 2], []])
    return with_events(clips, [[(0, 3 * COLUMN, 1), (2 * COLUMN, 4 * COLUMN, 2)], [], [(COLUMN, 2 * COLUMN, 0)], []])


def heard() -> torch.Tensor:
    """Of the mixture: [10 columns, classes]"""
    target = torch.zeros(10, CLASSES)
    target[0:3, 1] = target[2:4, 2] = 1
    target[8, 0] = 1
    return target


def split_losses(task: Events, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean over strong frames, mean over weak clips) of the binary cross-entropy, plainly."""
    with torch.no_grad():
        clips, found = task.frames(batch)
    frames = found["probability"].logit()
    known = torch.ones(10, CLASSES)
    known[4:7] = known[9:] = 0
    known[7:9, 2] = 0  # heard somewhere, nobody says when
    of_frames = F.binary_cross_entropy_with_logits(frames, heard(), reduction="none")
    weak = F.binary_cross_entropy_with_logits(clips[[1, 3]], multi_hot(batch, CLASSES)[[1, 3]], reduction="none")
    return (of_frames * known).sum() / CLASSES / 6, weak.sum() / CLASSES / 2


def totals(task: Events, *batches: PackedBatch) -> dict[str, float]:
    counts = sum(task.prepare(batch, NOW).counts for batch in batches)
    return dict(zip(task.count_names, counts.tolist()))  # type: ignore[union-attr]


def test_strong_frames_and_weak_clips_are_means_over_their_own_counts() -> None:
    task, batch = objective(weight_frames=2.0, weight_clips=0.5), mixture()
    counted = totals(task, batch)
    assert counted == {"strong_frames": 6.0, "weak_clips": 2.0}
    loss, metrics = task.loss(task.model, task.prepare(batch, NOW), counted, NOW)
    strong, weak = split_losses(task, batch)
    assert_close(loss, 2.0 * strong + 0.5 * weak)
    assert_close(metrics["loss/frames"], strong)
    assert_close(metrics["loss/clips"], weak)


def test_a_clip_is_the_linear_softmax_of_its_frames() -> None:
    task, batch = objective(), mixture()
    clips, found = task.frames(batch)
    assert found["row"].tolist() == [0] * 4 + [1] * 3 + [2] * 2 + [3]
    p = found["probability"].double().split([4, 3, 2, 1])
    wanted = torch.stack([(one**2).sum(0) / one.sum(0) for one in p])
    assert_close(clips.double().sigmoid(), wanted, 1e-5)
    assert_close(task.logits(batch), clips)


def test_parts_of_a_step_sum_to_its_loss() -> None:
    """Whatever the split: one part is all strong, one all weak, one empty."""
    task, batch = objective(), mixture()
    counted = totals(task, batch)
    whole, _ = task.loss(task.model, task.prepare(batch, NOW), counted, NOW)
    whole.backward()
    wanted = [parameter.grad.clone() for parameter in task.model.parameters()]
    task.model.zero_grad()
    some = [[(0, 3 * COLUMN, 1), (2 * COLUMN, 4 * COLUMN, 2)], [], [(COLUMN, 2 * COLUMN, 0)], []]
    loss = torch.zeros(())
    parts = [with_events(part(batch, a, b), some[a:b]) for a, b in ((0, 1), (1, 2), (2, 2), (2, 4))]
    assert totals(task, *parts) == counted
    for one in parts:
        share, _ = task.loss(task.model, task.prepare(one, NOW), counted, NOW)
        share.backward()
        loss = loss + share.detach()
    assert_close(loss, whole.detach(), 1e-6)
    for parameter, gradient in zip(task.model.parameters(), wanted):
        assert (parameter.grad - gradient).abs().max() <= 1e-6 * max(float(gradient.abs().max()), 1.0)


def test_without_a_weight_of_frames_every_clip_is_weak() -> None:
    task, batch = objective(weight_frames=0.0), mixture()
    counted = totals(task, batch)
    assert counted == {"strong_frames": 0.0, "weak_clips": 4.0}
    loss, _ = task.loss(task.model, task.prepare(batch, NOW), counted, NOW)
    with torch.no_grad():
        wanted = F.binary_cross_entropy_with_logits(task.logits(batch), multi_hot(batch, CLASSES))
    assert_close(loss.detach(), wanted)
    of_weak_set = replace(
        batch, label_timed=None, event_offset=None, event_onset=None, event_end=None, event=None
    )  # a set without any event
    again, _ = task.loss(task.model, task.prepare(of_weak_set, NOW), counted, NOW)
    assert_close(again, loss)


@given(
    st.integers(1, 40),
    st.sampled_from([80, 160, 240, 640]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([16, 10]),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
)
def test_frame_times_are_within_one_frame_of_the_truth(
    patches: int, hop: int, pool: int, stride: int, onset: int, long: int
) -> None:
    frames = patches * 16
    wide = columns(frames, stride)
    samples = (frames * pool - 1) * hop + 400
    onset %= samples
    end = min(onset + 1 + long % samples, samples)
    event = np.array([[0, onset, end, 2]])
    found = cells(event, np.array([wide]), np.array([hop]), np.array([pool]), stride)
    assert (found[:, 1] == 2).all()
    column = found[:, 0]
    assert column.tolist() == list(range(column[0], column[-1] + 1))
    times = np.rint(edges(wide, hop, pool, stride, samples) * 32000) / 2
    assert times[0] == 0
    assert times[-1] == samples
    assert len(times) == wide + 1
    assert (np.diff(times) > 0).all()
    frame = max(stride, 16) * pool * hop + 400
    assert abs(times[column[0]] - onset) <= frame
    assert abs(times[column[-1] + 1] - end) <= frame


def test_the_end_of_a_clip_that_was_cut_is_that_of_its_last_column() -> None:
    assert edges(4, 160, 1, 16, 10240 + 200)[-1] == pytest.approx(10440 / 16000)
    assert edges(4, 160, 1, 16, 480_000)[-1] == pytest.approx((1400 + 3 * 2560 + 1280) / 16000)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"augment": schema.Augment(mixup=0.5)}, "augment.mixup does not go with model.pooling frames"),
        ({"augment": schema.Augment(drop_tokens=0.1)}, "augment.drop_tokens does not go with"),
        ({"augment": schema.Augment(noise=True)}, "augment.noise does not go with"),
        ({"finetune": schema.Finetune(loss="ce")}, "set finetune.loss to bce"),
        ({"finetune": schema.Finetune(loss="bce", weight_frames=0, weight_clips=0)}, "must be above 0"),
        ({"finetune": schema.Finetune(loss="bce", median_frames=2)}, "must be an odd number"),
        (
            {"model": replace(MODEL, pooling="mean"), "finetune": schema.Finetune(median_frames=3)},
            "of a classifier of frames",
        ),
        ({"views": schema.Views(frames=96)}, "would classify padding"),
        ({"features": "cache"}, "does not go with features"),
        (
            {"model": replace(MODEL, pooling="mean"), "finetune": schema.Finetune(weight_frames=2)},
            "needs model.pooling",
        ),
        (
            {"stage": "pretrain", "finetune": schema.Finetune(), "views": schema.Views(count=2)},
            "for fine-tuning: choose cls, attention or mean",
        ),
    ],
)
def test_what_does_not_go_with_frames_is_refused(change: dict, sentence: str) -> None:
    base = replace(recipe(), step=schema.Step(clips=4), run=schema.Run(name="events"))
    check(base)
    with pytest.raises(RecipeError, match=sentence):
        check(replace(base, **change))
