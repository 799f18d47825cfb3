"""How many packs fit in one forward of a GPU, by the account of the recipe's step: its peak grows all but linearly with
them. `python -m gamut.estimate.fit RECIPE.yaml RANKS BYTES` tells a run (`gamut.estimate.packs`)."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from gamut.errors import GamutError
from gamut.estimate.packs import Fit
from gamut.estimate.rates import CONTEXT
from gamut.estimate.step import Account, account
from gamut.estimate.work import work_of
from gamut.recipe.resolved import read_resolved
from gamut.recipe.schema import Recipe

USED = 0.9  # of a device's memory, at most: the rest is for fragments, and for what an account leaves out
GROWTH = 8  # packs are tried up to so many times what was tried before: a longer line says too little
GROWS = ("activations", "logits", "prepared")  # with the tokens of a micro-batch


def with_packs(recipe: Recipe, packs: int) -> Recipe:
    return replace(recipe, loader=replace(recipe.loader, packs_per_forward=packs))


def used(made: Account) -> float:
    """Bytes of a GPU at the most, in a step whose micro-batches are as full as the fullest pack."""
    work = made.work
    fullest = max(1.0, float(work.epoch.pack_tokens.max()) * len(work.micro) / max(work.tokens, 1))
    return CONTEXT + sum(count * (fullest if kind in GROWS else 1.0) for kind, count in made.held.items())


def fit(recipe: Recipe, ranks: int, memory: float, clips: int | None = None) -> tuple[Fit, Account]:
    """The fewest forwards a step that need no more than 90 % of a GPU's `memory` in bytes, and of packs in each of them
    the fewest with which a step has so many; 1 pack where nothing fits. With the account of such a step.

    clips: of the set, if it is not on this machine but known. Raises as `gamut.estimate.forecast.estimate`.
    """
    room = USED * memory
    most = -(-recipe.step.packs // ranks)  # that a rank has
    sizes = {-(-most // forwards) for forwards in range(1, most + 1)}
    tried: dict[int, tuple[float, Account]] = {}
    size = 1
    while size not in tried:
        made = account(with_packs(recipe, size), work_of(with_packs(recipe, size), ranks, clips), "cuda")
        tried[size] = used(made), made
        size = _next(sizes, {packs: bytes_ for packs, (bytes_, _) in tried.items()}, room)
    bytes_, made = tried[size]
    return Fit(size, bytes_, room, made.flops / max(made.work.tokens, 1)), made


def _next(sizes: set[int], tried: dict[int, float], room: float) -> int:
    """The size to try next; one that was tried already is the answer.

    A peak is the most of several lines, so beyond two that were tried it is above the line through them: what has no
    room on the line through the two least that were too many does not fit either. Going up, that line is only a guess.
    """
    if tried[1] > room:
        return 1
    good = max(size for size, count in tried.items() if count <= room)
    bad = sorted(size for size, count in tried.items() if count > room)[:2]
    allowed = sorted(size for size in sizes if good < size < (bad[0] if bad else GROWTH * good + 1))
    if not allowed:
        return good
    if len(tried) == 1:
        return allowed[0]
    if len(bad) == 1:
        return allowed[len(allowed) // 2]
    one, other = bad or sorted(tried)[-2:]
    slope = (tried[other] - tried[one]) / (other - one)
    return max([size for size in allowed if tried[one] + slope * (size - one) <= room], default=good)


def main(argv: list[str]) -> int:
    """RECIPE.yaml RANKS BYTES: print what fits, as JSON."""
    try:
        found, _ = fit(read_resolved(Path(argv[0])), int(argv[1]), float(argv[2]))
    except (GamutError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(vars(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
