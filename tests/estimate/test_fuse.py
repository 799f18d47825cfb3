"""What `compute` changes in an account."""

from __future__ import annotations

import pytest

from gamut.estimate.calls import Call
from gamut.estimate.forecast import forecast
from gamut.estimate.fuse import fuse, made_again
from gamut.estimate.rates import of_sheet
from gamut.estimate.step import account
from gamut.estimate.work import work_of
from gamut.recipe.load import load_recipe


def call(name: str, reads: tuple[int, ...], writes: tuple[int, ...], region: str = "r", backward: bool = False) -> Call:
    """Pieces of memory of 100 bytes by number."""
    kind = "matmul" if name == "mm" else "memory"
    sizes = [tuple((number, 100) for number in numbers) for numbers in (reads, writes)]
    count = 100.0 * (len(reads) + len(writes))
    return Call(name, kind, 0.0, count, 1, True, "a:1", "micro", False, *sizes, region, backward)


def test_neighbours_become_one_kernel_that_reads_and_writes_what_is_outside() -> None:
    calls = [
        call("mm", (1,), (2,)),
        call("add", (2,), (3,)),
        call("gelu", (3, 9), (4,)),  # 3 is read nowhere else
        call("mm", (4,), (5,)),
        call("add", (5,), (6,), region=""),
    ]
    fused = fuse(calls)
    assert [one.name for one in fused] == ["mm", "gelu", "mm", "add"]
    assert fused[1].bytes == 300.0  # 2 and 9 in, 4 out
    assert [one.compiled for one in fused] == [True, True, True, False]


def test_what_the_backward_alone_wants_is_made_again() -> None:
    calls = [
        call("mm", (1,), (2,)),
        call("gelu", (2,), (3,)),
        call("mm", (3,), (4,)),
        call("add", (4,), (5,)),  # goes on to what is not of this part
        call("mm", (5,), (6,), region="next"),
        call("mm", (3, 6), (7,), backward=True),
        call("mul", (5, 7), (8,), backward=True),
    ]
    assert made_again(calls) == 100  # 3


@pytest.mark.long
def test_compiled_and_computed_twice() -> None:
    def seen(*overrides: str) -> tuple[float, float, int]:
        recipe = load_recipe("pretrain", "asit_tiny", ("data=nowhere", "step.packs=1", *overrides))
        made = forecast(account(recipe, work_of(recipe, 1), "cuda"), of_sheet("h100"), 1)
        return made.memory["activations"], made.flops, len(made.account.calls)

    memory, flops, calls = seen("compute.compile=false")
    less, same, fewer = seen()
    assert less < 0.85 * memory
    assert same == flops
    assert fewer < calls
    less, more, _ = seen("compute.compile=false", "compute.activations=recompute")
    assert less < 0.6 * memory
    assert 1.1 * flops < more < 1.34 * flops  # a third forward of the student's blocks beside backward and teacher
