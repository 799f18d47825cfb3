"""What real steps take on the CPU, engine included: `python tests/estimate/measured.py STEPS STAGE/RECIPE ...`.

Prints JSON, a list with a dictionary a recipe: `peak`, bytes that torch's allocator had handed out at once during a
step, by the memory events of torch.profiler; `seconds` of each of so many steps more, and the `rates` of this CPU, as
measured among them. Nothing of the account's own bookkeeping is used, but for its stand-in clips.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gamut.estimate.measure import measure
from gamut.estimate.step import objective_of
from gamut.estimate.work import work_of
from gamut.recipe.load import load_recipe
from gamut.train import world as ranks
from gamut.train.loop import make_engine
from gamut.train.objective import Moment
from gamut.train.step import Asks, Stepper


def measured(stage: str, name: str, overrides: tuple[str, ...], steps: int) -> dict:
    recipe = load_recipe(stage, name, overrides)
    world = ranks.start(recipe.run)
    work = work_of(recipe, 1)
    batch = work.batch()
    at = Moment(recipe.epochs // 2, 0, 0, 0.5)

    def step(stepper: Stepper) -> None:
        assert stepper.take([batch], at, 1e-4, 0.0, Asks(), 0.0).applied

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        objective = objective_of(recipe, work, world.device)
        objective.model.train()
        stepper = Stepper(objective, make_engine(objective, recipe, world, 1), world)
        step(stepper)  # makes the optimiser's state
        with record_function("measured"):
            step(stepper)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    span = next(event for event in events if event.name() == "measured")
    peak = total = 0
    for event in events:
        if event.name() == "[memory]":
            total += event.nbytes()
            if span.start_ns() <= event.start_ns() <= span.end_ns():
                peak = max(peak, total)
    seconds, rates = [], []
    for number in range(steps):
        if number % 3 == 0:  # not of another minute: a shared machine drifts
            rates.append(json.loads(measure(world.device).to_json()))
        since = time.perf_counter()
        step(stepper)
        seconds.append(time.perf_counter() - since)
    return {"peak": peak, "seconds": seconds, "rates": rates, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    found = []
    for words in sys.argv[2:]:
        (stage, _, name), *overrides = words.split(",")[0].partition("/"), *words.split(",")[1:]
        found.append(measured(stage, name, tuple(overrides), int(sys.argv[1])))
    print(json.dumps(found))
    ranks.stop()
