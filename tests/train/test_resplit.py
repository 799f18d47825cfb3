"""Cutting the optimiser's state for another world loses nothing."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gamut.train.zero import STATE, WEIGHTS, resplit


def parts(whole: torch.Tensor, world: int, alignment: int) -> list[torch.Tensor]:
    """How DeepSpeed cuts: padded to a multiple of world x alignment, then into equal parts."""
    unit = world * alignment
    padded = torch.cat([whole, torch.zeros(-len(whole) % unit)])
    return list(padded.view(world, -1).unbind())


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 2))
def test_a_new_world_gets_what_it_would_have_written(old: int, new: int, elements: list[int], alignment: int) -> None:
    def saved(world: int) -> list[dict]:
        states: list[dict] = [
            {WEIGHTS: [], STATE: {"state": {}, "param_groups": [{"lr": 0.1}]}, "clip_grad": 3.0} for _ in range(world)
        ]
        for group, n in enumerate(elements):
            vectors = [torch.arange(1.0, n + 1) + 100 * group + 1000 * kind for kind in range(3)]
            cuts = [parts(vector, world, alignment) for vector in vectors]
            for rank, state in enumerate(states):
                state[WEIGHTS].append(cuts[0][rank])
                moments = {"exp_avg": cuts[1][rank], "exp_avg_sq": cuts[2][rank], "step": torch.tensor(7.0)}
                state[STATE]["state"][group] = moments
        return states

    expected = saved(new)
    sizes = [len(part) for part in expected[0][WEIGHTS]]
    for rank in range(new):
        mine = resplit(saved(old), elements, sizes, rank)
        assert mine["clip_grad"] == 3.0
        for group in range(len(elements)):
            assert torch.equal(mine[WEIGHTS][group], expected[rank][WEIGHTS][group])
            for key, value in expected[rank][STATE]["state"][group].items():
                assert torch.equal(mine[STATE]["state"][group][key], value)
