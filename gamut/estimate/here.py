"""What a run would take on this machine's own devices, for its dry run: parameters, memory, time."""

from __future__ import annotations

import time

import torch

from gamut.accelerator import accelerator
from gamut.estimate.forecast import estimate
from gamut.estimate.rates import CONTEXT, GIGA, SHEETS, of_sheet
from gamut.estimate.step import account
from gamut.estimate.work import work_of
from gamut.progress import duration
from gamut.recipe.schema import Recipe

SIDE = 512  # of the matrices by which a CPU is timed
TRIED = 0.3  # seconds of it


def rows(recipe: Recipe, ranks: int) -> list[tuple[str, str]]:
    """(what, how much) of a run on `ranks` GPUs of the kind that is here, or on the CPU. Of a GPU whose data sheet is
    not known, and of what no account can be made of, the one row says so.

    A CPU's time is a lower bound: that of the operations of all steps at the speed of its matrix products now.
    """
    try:
        return _on_gpus(recipe, ranks) if accelerator() == "cuda" else _on_cpu(recipe, ranks)
    except Exception as error:  # also of a plugin's objective, which an account need not be able to follow
        return [("forecast", f"none: {(str(error).splitlines() or [type(error).__name__])[0]}")]


def _on_gpus(recipe: Recipe, ranks: int) -> list[tuple[str, str]]:
    name = torch.cuda.get_device_name(0)
    known = next((sheet for sheet in SHEETS if sheet in name.lower()), None)
    if known is None:
        return [("forecast", f"none: the data sheet of {name} is not known; see python -m gamut.estimate --measure")]
    made = estimate(recipe, of_sheet(known), 1, ranks)
    used, has = made.gigabytes + CONTEXT / GIGA, made.rates.memory / GIGA
    return [
        _parameters(made.account.parameters),
        ("memory a GPU", f"about {used:,.1f} GB of {has:,.0f}" + ": more than it has" * (used > has)),
        (
            "time",
            f"about {duration(3600 * made.hours)} on {ranks} {known} at {made.clips * ranks:,.0f} clips/s (estimate)",
        ),
    ]


def _on_cpu(recipe: Recipe, ranks: int) -> list[tuple[str, str]]:
    work = work_of(recipe, ranks)
    made = account(recipe, work, "cpu")
    steps = work.epoch.steps * recipe.epochs
    return [
        _parameters(made.parameters),
        ("memory a rank", f"about {sum(made.held.values()) / GIGA:,.2f} GB for the step, and 1 GB for torch"),
        ("time", f"at least {duration(made.flops_a_step * steps / _products_a_second())} on this CPU as it is now"),
    ]


def _parameters(number: int) -> tuple[str, str]:
    return "parameters", f"{number / 1e6:,.2f} million"


def _products_a_second() -> float:
    """Operations a second of products of float32 matrices on all cores that torch uses."""
    left, right = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    left @ right  # the first one takes longer
    began, done = time.monotonic(), 0
    while time.monotonic() - began < TRIED:
        left @ right
        done += 1
    return 2 * SIDE**3 * done / (time.monotonic() - began)
