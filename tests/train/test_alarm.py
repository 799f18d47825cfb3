"""Loss spikes, collapse, and replicas that diverge: seen on the step, and what then happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import diverging, spiking, staged
from hypothesis import given
from hypothesis import strategies as st
from ranks import Ranks, run

from gamut.errors import RunError
from gamut.recipe import schema
from gamut.train.alarm import LEAST, WINDOW, Alarm, is_spike
from gamut.train.checkpoint import Keeper
from gamut.train.guard import compare_replicas, fingerprint
from gamut.train.state import State

LONG = {"epochs": 6, "checkpoint": schema.Checkpoint(every_epochs=0.4, every_minutes=1e9)}


def guarded(policy: str, engine: int | str = 1, **changes: object) -> schema.Recipe:
    return staged(engine, guard=schema.Guard(policy=policy, leave_out=3), **LONG, **changes)


@given(st.lists(st.floats(0.5, 2.0), min_size=LEAST, max_size=64))
def test_what_is_no_spike(recent: list[float]) -> None:
    assert not is_spike(max(recent), recent, 1e9)
    assert not is_spike(sorted(recent)[len(recent) // 2], recent, 10.0)
    assert not is_spike(1e9, recent, 0.0)
    assert not is_spike(1e9, recent[: LEAST - 1], 10.0)


@given(st.integers(LEAST, 64), st.floats(0.1, 10.0), st.integers(0, 2**32 - 1))
def test_a_loss_far_above_the_noise_is_a_spike(n: int, level: float, seed: int) -> None:
    recent = list(level + 0.02 * level * np.random.default_rng(seed).uniform(-1, 1, n))
    assert is_spike(2.0 * level, recent, 10.0)
    assert not is_spike(1.03 * level, recent, 10.0)


def test_a_state_of_an_earlier_version_counts_its_spikes() -> None:
    state = State(step=3, loss_spikes=2)
    assert State.read(state.as_dict()) == state
    assert State.read({"step": 3, "leaps": 2}) == state


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]), st.integers(1, 40), st.data())
def test_a_fingerprint_is_of_every_bit(dtype: torch.dtype, n: int, data: st.DataObject) -> None:
    values = torch.arange(n).to(dtype)
    other = values.clone()
    place = data.draw(st.integers(0, values.element_size() * n - 1))
    bit = 1 if dtype == torch.bool else 1 << data.draw(st.integers(0, 7))
    other.view(torch.uint8)[place] ^= bit
    assert fingerprint(values) == fingerprint(values.clone())
    assert fingerprint(values) != fingerprint(other)


@pytest.mark.long
def test_a_spike_is_flagged_and_by_default_trained_on(tmp_path: Path) -> None:
    ranks = Ranks(1, spiking, tmp_path, guarded("flag"), [22], 1)
    answer = ranks.wait()[0][0]
    assert answer["status"] == "finished"
    assert "step 23: the loss spiked to" in ranks.log()
    lines = dict(answer["lines"])
    assert (lines[22]["leaps"], lines[23]["leaps"]) == (0, 1)
    assert "loss" in lines[23]


def test_a_spike_can_stop_the_run_before_it_is_applied(tmp_path: Path) -> None:
    answers = run(2, spiking, tmp_path, guarded("stop"), [22], 2)
    for first, second in answers:
        assert first.startswith("Step 23: the loss spiked to")
        assert "It was not applied" in first
        assert second == first  # from the checkpoint of step 22, the same again


@pytest.mark.parametrize(
    "engine", [1, pytest.param(3, marks=pytest.mark.long), pytest.param("oss", marks=pytest.mark.long)]
)
def test_going_back_leaves_the_steps_out_and_replays(tmp_path: Path, engine: int | str) -> None:
    """What comes of it is, bit for bit, a run that was told from the beginning to leave these steps out."""
    recipe = guarded("back", engine)
    told = tmp_path / "told"
    told.mkdir(mode=0o700)
    ends = run(2, spiking, tmp_path / "run", recipe, [22], 2)
    assert json.loads((tmp_path / "run" / "left_out.json").read_text()) == [[20, 22]]
    (told / "left_out.json").write_text("[[20, 22]]")
    expected = run(2, spiking, told, recipe, [22], 1)
    for (first, second), (only,) in zip(ends, expected, strict=True):
        assert [end["status"] for end in (first, second, only)] == ["preempted", "finished", "finished"]
        assert second["state"].step == only["state"].step == 30
        assert second["state"].skipped == 0
        known = dict(only["lines"])
        for step, values in second["lines"]:
            assert ("loss" in values) == (step not in (21, 22, 23)), step
            assert values.get("loss") == known[step].get("loss"), step
        for part in ("weights", "extra"):
            for name, value in second[part].items():
                assert value.tobytes() == only[part][name].tobytes(), name


def test_going_back_does_not_go_on_for_ever(tmp_path: Path) -> None:
    recipe = replace(guarded("back"), guard=schema.Guard(policy="back", leave_out=1))
    ends = run(1, spiking, tmp_path, recipe, list(range(20, 30)), 6)[0]
    assert [end["status"] for end in ends[:5]] == ["preempted"] * 5
    assert "gone back 5 times already" in ends[5]


def alarm(folder: Path, guard: schema.Guard, state: State, said: str = "") -> Alarm:
    """On one rank, of a run whose every step is `said` to have collapsed."""
    world = SimpleNamespace(first=True, agree=lambda problem, what: None, broadcast=lambda value: value)
    return Alarm(guard, state, folder, world, lambda values: said)


@pytest.mark.parametrize("policy", ["stop", "back", "flag"])
def test_a_collapse_that_is_older_than_the_policy_is_still_acted_on(tmp_path: Path, policy: str) -> None:
    guard = schema.Guard(policy=policy, collapse_steps=10)
    judge = alarm(tmp_path, guard, State(collapsed_in_a_row=25), "all was the same")
    assert judge.allows({"loss": 1.0}) == (policy == "flag")
    assert judge.trouble == ("" if policy == "flag" else "for 26 steps all was the same")


def test_a_rise_that_lasts_is_flagged_until_it_is_what_the_loss_is(tmp_path: Path) -> None:
    judge = alarm(tmp_path, schema.Guard(policy="flag", loss_spike=10.0), State(recent_losses=[1.0] * WINDOW))
    flagged = [bool(judge.allows({"loss": 2.0}) and judge.trouble) for _ in range(WINDOW)]
    assert flagged[0]
    assert not any(flagged[WINDOW // 2 + 1 :])
    stopping = alarm(tmp_path, schema.Guard(policy="back", loss_spike=10.0), State(recent_losses=[1.0] * WINDOW))
    assert not any(stopping.allows({"loss": 2.0}) for _ in range(WINDOW))  # none of them was applied


def test_going_back_says_which_checkpoint_is_the_newest_now(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, schema.Recipe(), None, {}, None, None)
    for step in (10, 20, 30):
        (tmp_path / f"step-{step:08d}").mkdir()
    keeper.newest = tmp_path / "step-00000030"
    assert keeper.back(25) == 20
    assert keeper.newest == tmp_path / "step-00000020"
    assert (tmp_path / "latest").read_text() == "step-00000020\n"


@pytest.mark.parametrize(
    ("values", "whom"), [([1, 2], "the ranks"), ([1, 1, 2, 2], "the ranks"), ([1, 1, 2], "ranks 2 against the others")]
)
def test_only_ranks_that_most_contradict_are_named(values: list[int], whom: str) -> None:
    world = SimpleNamespace(size=len(values), device="cpu", gather=lambda mine: [[value] for value in values])
    with pytest.raises(RunError) as caught:
        compare_replicas(world, {"weight": torch.zeros(1)}, 8)
    assert f"({whom})" in str(caught.value)
    assert ("odd rank" in str(caught.value)) == (whom != "the ranks")


@pytest.mark.parametrize(("part", "engine"), [("model", 0), ("teacher", "oss"), ("teacher", 1)])
def test_replicas_that_diverge_stop_the_run(tmp_path: Path, part: str, engine: int | str) -> None:
    recipe = staged(engine, guard=schema.Guard(divergence_steps=4))
    answers = run(2, diverging, tmp_path, recipe, part, 5)
    assert answers[0] == answers[1]
    assert answers[0].startswith("After step 8 the ranks no longer have the same")
    assert {"model": "model.norm.weight", "teacher": "copy 0.norm.weight"}[part] in answers[0]


def test_ranks_that_do_not_are_left_alone(tmp_path: Path) -> None:
    for engine in (1, 3):
        answers = run(
            2, diverging, tmp_path / str(engine), staged(engine, guard=schema.Guard(divergence_steps=1)), "model", 99
        )
        assert answers == ["finished"] * 2
