"""What `compute.compile` makes of the calls of a block: those between two matrix products become one.

torch's compiler is not run: its rules are stated. Calls of one compiled part that follow each other and are bound by
memory are one kernel, which reads what comes from outside and writes what goes there. What such a kernel made for the
backward alone is made again there from what it was made of, except the sums that a LayerNorm begins with. Sums over the
rows are a kernel of their own, since those before them go row by row: what they add up is written and read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby

from gamut.estimate.calls import COLUMNS, Call

ALONE = (COLUMNS, "scatter_add_", "cumsum")  # share a kernel with their like alone
KEPT = "native_layer_norm"  # what it reads is kept: to sum twice would cost more


def fuse(calls: list[Call]) -> list[Call]:
    """The calls as they are with compiled blocks, in the same order."""
    last = {number: at for at, call in enumerate(calls) for number, _ in call.reads}
    fused: list[Call] = []
    for key, run in groupby(enumerate(calls), lambda one: _kernel(one[1])):
        numbered = list(run)
        if key is None:
            fused += [call for _, call in numbered]
        elif key[1] not in ("memory", *ALONE):
            fused += [replace(call, compiled=True) for _, call in numbered]
        else:
            fused.append(_one([call for _, call in numbered], numbered[-1][0], last))
    return fused


def _kernel(call: Call) -> tuple[str, str, bool] | None:
    """What a call may share a kernel with; None outside of compiled parts."""
    if not call.region or not call.launches or call.wait:
        return None
    return call.region, call.name if call.name in ALONE else call.kind, call.backward


def _one(calls: list[Call], end: int, last: Mapping[int, int]) -> Call:
    """One kernel for several calls. end: the number of the last; last: where each piece of memory is read last."""
    made: dict[int, int] = {}
    read: dict[int, int] = {}
    for call in calls:
        for number, count in call.reads:
            if number not in made:
                read[number] = max(count, read.get(number, 0))
        made.update(call.writes)
    out = sum(count for number, count in made.items() if last.get(number, end + 1) > end)
    return replace(calls[-1], bytes=float(sum(read.values()) + out), launches=1, compiled=True)


def made_again(calls: list[Call]) -> int:
    """Bytes of activations that compiled blocks need not keep: made by kernels of a part, and read outside of the
    forward of that part in its own backward alone."""
    maker: dict[int, str] = {}
    size: dict[int, int] = {}
    readers: dict[int, set[tuple[str, bool]]] = defaultdict(set)
    kept: set[int] = set()
    for call in calls:
        for number, _ in call.reads:
            readers[number].add((call.region, call.backward))
            if call.name == KEPT:
                kept.add(number)
        for number, count in call.writes:
            size[number] = count
            if call.region and call.kind == "memory" and not call.backward:
                maker.setdefault(number, call.region)
            else:
                maker[number] = ""
    own = (number for number, region in maker.items() if region and number not in kept)
    return sum(
        size[number]
        for number in own
        if (maker[number], True) in readers[number]
        and readers[number] <= {(maker[number], True), (maker[number], False)}
    )
