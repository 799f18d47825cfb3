"""`loader.packs_per_forward: auto`: what fits is taken, the results stay."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gamut.commands import ROOT
from gamut.errors import RecipeError
from gamut.estimate.fit import _next, fit, used, with_packs
from gamut.estimate.step import Account, account
from gamut.estimate.work import Work
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe
from gamut.train.loop import too_large
from tests import warm

TINY = ("data=nowhere", "step.packs=8", "step.clips=4", "model.dim=48", "model.depth=2", "asit.hidden=32")


def found(sizes: set[int], peak: dict[int, float], room: float) -> tuple[int, int]:
    """(what the search comes to, how many it tries)."""
    tried: dict[int, float] = {}
    size = 1
    while size not in tried:
        tried[size] = peak[size]
        size = _next(sizes, tried, room)
    return size, len(tried)


@example(most=106, each=2.0, update=31.0, room=32.0)  # where the peak begins to grow all but where it is too much
@given(
    most=st.integers(1, 300),
    each=st.floats(0.1, 3.0),
    update=st.floats(0.0, 200.0),
    room=st.floats(5.0, 400.0),
)
def test_the_most_that_fits_is_found_with_few_tries(most: int, each: float, update: float, room: float) -> None:
    """Of a peak that is in the forward, whose memory grows with the packs, or in the update, whose memory does not."""
    sizes = {-(-most // forwards) for forwards in range(1, most + 1)}
    peak = {size: max(update, 4.0 + each * size) for size in sizes}
    size, tries = found(sizes, peak, room)
    fits = [one for one in sizes if peak[one] <= room]
    assert size == 1 if not fits else peak[size] <= room
    assert size >= max((one for one in fits if peak[one] * 1.0001 <= room), default=1)  # rounding
    assert tries <= 8


def test_more_memory_takes_more_packs_and_fewer_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[int, Account] = {}

    def once(recipe: Recipe, work: Work, kind: str) -> Account:
        packs = recipe.loader.per_forward
        made[packs] = made.get(packs) or account(recipe, work, kind)
        return made[packs]

    monkeypatch.setattr("gamut.estimate.fit.account", once)
    recipe = load_recipe("pretrain", "asit_tiny", (*TINY, "loader.packs_per_forward=auto"))
    one, of_one = fit(recipe, 2, 1.0)
    assert one.packs == 1
    assert one.bytes > one.room
    assert "not even one pack" in one.said()
    assert one.bytes == used(of_one)
    all_, of_all = fit(recipe, 2, 80e9)
    assert all_.packs == 4  # of 8 for 2 ranks
    assert of_all.work.forwards == 1
    some, of_some = fit(recipe, 2, (one.bytes + 0.5 * (all_.bytes - one.bytes)) / 0.9)
    assert some.packs == 2
    assert of_some.work.forwards == 2
    assert one.bytes < some.bytes <= some.room < all_.bytes


def test_the_key_is_a_number_or_auto() -> None:
    assert load_recipe("pretrain", "asit_b").loader.packs_per_forward == "auto"
    assert load_recipe("pretrain", "asit_b", ("loader.packs_per_forward=3",)).loader.per_forward == 3
    for wrong in ("0", "most", "1.5", "true"):
        with pytest.raises(
            RecipeError, match=r"loader.packs_per_forward .*(at least 1 or auto|a whole number or a name)"
        ):
            load_recipe("pretrain", "asit_b", (f"loader.packs_per_forward={wrong}",))


RUN = """
import sys
from gamut.estimate import packs
if int(sys.argv[1]):
    packs.memory_of = lambda device: int(sys.argv[1])
from pretrain.run import main
sys.exit(main(sys.argv[2:]))
"""


def losses(folder: Path, memory: int, per_forward: str) -> tuple[list[float], int, str]:
    """(of each step, packs a forward, what was printed) of a run on a CPU that is said to have so much memory."""
    words = ["demo", f"data={ROOT}/tests/fixtures/shards", *TINY[1:], "epochs=1", "run.threads=1"]
    words += [f"run.folder={folder}", f"run.name={per_forward}", "track.mlflow=off", "loader.workers=0"]
    words += [
        f"loader.packs_per_forward={per_forward}",
        "probe.every_epochs=0",
        "views.frames=32",
        "model.table_frames=32",
        "step.packs=4",
    ]
    (folder / "run.py").write_text(RUN)
    environment = os.environ | warm.FIXED | {"PYTHONPATH": str(ROOT)}
    line = [warm.python(), str(folder / "run.py"), str(memory), *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (folder / per_forward / "metrics.jsonl").read_text().splitlines()]
    (start,) = [line for line in lines if line.get("event") == "start"]
    return [line["loss"] for line in lines if "loss" in line], start["packs_per_forward"], done.stdout


@pytest.mark.long
def test_what_is_taken_changes_no_result(tmp_path: Path) -> None:
    expected, packs, _ = losses(tmp_path, 0, "1")
    assert packs == 1
    assert len(expected) >= 2
    found, packs, said = losses(tmp_path, 80_000_000_000, "auto")
    assert packs == 4
    assert "loader.packs_per_forward: auto is 4 (" in said
    assert found == pytest.approx(expected, rel=1e-5)
    recipe = (tmp_path / "auto" / "recipe.yaml").read_text()
    assert "packs_per_forward: auto" in recipe


def test_where_it_does_not_fit_after_all_the_key_is_named() -> None:
    recipe = load_recipe("pretrain", "asit_b", ("loader.packs_per_forward=8",))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "loader.packs_per_forward=4" in too_large(recipe, error)
    assert "compute.activations=recompute" in too_large(with_packs(recipe, 1), error)
