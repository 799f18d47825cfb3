"""Schedules against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gamut.recipe import schema
from gamut.train.schedule import Schedule, cosine

OPTIM = schema.Optim(
    lr=5e-4, lr_base_batch=256, lr_end=1e-6, warmup_epochs=10.0, weight_decay=0.04, weight_decay_end=0.4
)


def test_the_peak_follows_the_batch_size() -> None:
    schedule = Schedule.of(OPTIM, epochs=100, draws=1000, steps=10)
    assert schedule.batch == 100.0
    assert schedule.peak == pytest.approx(5e-4 * 100 / 256)
    assert not schedule.notes
    fixed = Schedule.of(schema.Optim(lr=3e-4, lr_base_batch=0), epochs=100, draws=1000, steps=10)
    assert fixed.peak == 3e-4


def test_the_peak_may_follow_the_root_of_the_batch_size() -> None:
    root = schema.Optim(lr=3e-4, lr_base_batch=160, lr_rule="sqrt")
    assert Schedule.of(root, epochs=100, draws=1600, steps=10).peak == pytest.approx(3e-4)
    assert Schedule.of(root, epochs=100, draws=160_000, steps=10).peak == pytest.approx(3e-3)
    assert Schedule.of(schema.Optim(lr_base_batch=0, lr_rule="sqrt"), epochs=1, draws=160, steps=1).peak == 5e-4


def test_a_warm_up_in_steps_takes_the_place_of_one_in_epochs() -> None:
    optim = schema.Optim(lr=1e-3, lr_base_batch=0, warmup_epochs=10.0, warmup_steps=50)
    schedule = Schedule.of(optim, epochs=100, draws=1000, steps=10)
    assert schedule.warmup == 0.05
    assert schedule.lr(25 / 1000) == pytest.approx(5e-4)
    assert not schedule.notes
    assert Schedule.of(schema.Optim(warmup_steps=0), epochs=2, draws=100, steps=10).warmup == 0.0
    cut = Schedule.of(optim, epochs=10, draws=1000, steps=10)
    assert cut.warmup == 0.25
    assert cut.notes == (
        "The warm-up of 50 steps is longer than a quarter of the run's 100 steps: it is cut to 25 steps.",
    )


def test_warm_up_is_linear_and_then_a_cosine() -> None:
    schedule = Schedule.of(OPTIM, epochs=100, draws=256, steps=1)
    assert schedule.lr(0.0) == 0.0
    assert schedule.lr(0.05) == pytest.approx(2.5e-4)
    assert schedule.lr(0.10) == pytest.approx(5e-4)
    assert schedule.lr(0.55) == pytest.approx((5e-4 + 1e-6) / 2)
    assert schedule.lr(1.0) == pytest.approx(1e-6)
    quarter = 1e-6 + (5e-4 - 1e-6) * (1 + math.sqrt(0.5)) / 2
    assert schedule.lr(0.10 + 0.9 / 4) == pytest.approx(quarter)


def test_weight_decay_is_a_cosine_over_the_whole_run() -> None:
    schedule = Schedule.of(OPTIM, epochs=100, draws=256, steps=1)
    assert [schedule.decay(f) for f in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.22, 0.4])


def test_a_long_warm_up_is_cut_to_a_quarter_and_said_so() -> None:
    schedule = Schedule.of(OPTIM, epochs=20, draws=256, steps=1)
    assert schedule.warmup == 0.25
    assert "5 epochs" in schedule.notes[0]
    assert schedule.lr(0.25) == pytest.approx(5e-4)


def test_gamma_is_multi_step_lr_as_ast_uses_it() -> None:
    """Stepped after every epoch, with milestones from the first on: here 2, 5, 8, ..."""
    optim = schema.Optim(lr=1e-4, lr_base_batch=0, schedule="gamma", gamma=0.5, gamma_from=2, gamma_every=3,
                         warmup_steps=0)  # fmt: skip
    schedule = Schedule.of(optim, epochs=15, draws=70, steps=7)
    weight = torch.nn.Parameter(torch.zeros(1))
    torch_s = torch.optim.SGD([weight], lr=1e-4)
    milestones = torch.optim.lr_scheduler.MultiStepLR(torch_s, list(range(2, 1000, 3)), gamma=0.5)
    for epoch in range(15):
        for step in range(7):
            before = (70 * epoch + 10 * step) / (70 * 15)
            assert schedule.lr(before) == pytest.approx(torch_s.param_groups[0]["lr"], rel=1e-12), (epoch, step)
        torch_s.step()
        milestones.step()


def test_a_warm_up_may_be_counted_in_steps_and_begin_above_nothing() -> None:
    optim = schema.Optim(lr=1e-3, lr_base_batch=0, schedule="gamma", gamma_from=90, warmup_steps=1000)
    schedule = Schedule.of(optim, epochs=100, draws=5000, steps=500)
    assert schedule.warmup == pytest.approx(1000 / 50_000)
    assert schedule.lr(500 / 50_000) == pytest.approx(5e-4)
    assert schedule.lr(0.5) == 1e-3
    from_one_percent = schema.Optim(lr=1e-3, lr_base_batch=0, warmup_epochs=2.0, warmup_start=0.01)
    schedule = Schedule.of(from_one_percent, epochs=30, draws=100, steps=10)
    assert schedule.lr(0.0) == pytest.approx(1e-5)
    assert schedule.lr(1 / 30) == pytest.approx(1e-3 * (0.01 + 0.99 / 2))
    short = Schedule.of(optim, epochs=10, draws=100, steps=10)
    assert short.warmup == 0.25
    assert "1000 steps is longer than a quarter of the run's 100 steps" in short.notes[0]
    assert "25 steps" in short.notes[0]


@given(st.floats(0, 1), st.floats(0, 20), st.integers(1, 300))
def test_rates_stay_between_their_ends(fraction: float, warmup: float, epochs: int) -> None:
    optim = schema.Optim(lr=1e-3, lr_base_batch=0, lr_end=1e-6, warmup_epochs=warmup)
    schedule = Schedule.of(optim, epochs, 100, 10)
    assert 0.0 <= schedule.lr(fraction) <= 1e-3 * (1 + 1e-12)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_cosine_falls(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert cosine(1.0, 0.0, low) >= cosine(1.0, 0.0, high)
