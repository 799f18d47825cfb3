from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gamut.errors import RecipeError
from gamut.tag.units import STEP, UNIT, Units, units_of
from tests.close import assert_close


@pytest.mark.parametrize("units", [1, 2, 7, 11, 25, 75, 1000])
def test_every_multiple_of_the_unit_is_one(units: int) -> None:
    """4.4 / 0.4 is 11.000000000000002 in floats, and still 11."""
    assert units_of(units * 0.4) == units
    assert units_of(float(f"{units * 0.4:.1f}")) == units


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.5, -0.4, 4.5, float("nan"), float("inf")])
def test_other_times_are_refused(seconds: float) -> None:
    with pytest.raises(RecipeError, match=r"multiple of 0\.4 s"):
        units_of(seconds)


@given(
    st.integers(1, 900), st.lists(st.integers(1, 200), min_size=1, max_size=30), st.integers(1, 9), st.integers(0, 999)
)
def test_windows_that_overlap_give_the_means_of_the_steps(
    steps: int, advances: list[int], units: int, seed: int
) -> None:
    """Every window has the true outputs of its steps, so the means are those of the whole recording."""
    window = 200
    truth = torch.randn(2, steps + window, 3, generator=torch.Generator().manual_seed(seed))
    sums = Units(steps * STEP - 7)
    assert sums.steps == steps
    found: list[torch.Tensor] = []
    first, turn = 0, 0
    while first < steps:
        sums.add(first, list(truth[:, first : first + window]))
        while (part := sums.take(units)) is not None:
            assert part.shape == (2, units, 3)
            found.append(part)
        first += advances[turn % len(advances)]
        turn += 1
    if (rest := sums.take(units, rest=True)) is not None:
        assert rest.shape[1] < units
        found.append(rest)
    assert sums.take(units, rest=True) is None
    expected = [truth[:, at : min(at + UNIT, steps)].mean(1) for at in range(0, steps, UNIT)]
    assert_close(torch.cat(found, 1), torch.stack(expected, 1), 1e-5)


def test_a_step_counts_once_from_the_first_window_that_had_it() -> None:
    sums = Units(60 * STEP)
    sums.add(0, [torch.zeros(40, 1)])
    sums.add(20, [torch.ones(40, 1)])
    assert sums.take(3).flatten().tolist() == [0.0, 0.0, 1.0]


def test_windows_that_nobody_wants_are_known_and_hold_nothing() -> None:
    sums = Units(90 * STEP)
    for first in (0, 20, 40):
        sums.pass_over(first, 40)
    assert sums.room(70, 40) == (10, 20)
    sums.pass_over(70, 40)
    assert sums.room(80, 40) == (10, 10)
    assert sums._sums == []
