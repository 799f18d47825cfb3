"""Several submissions in one line, each to start when the one before has ended well: `... --then ...`.

Where a later part does not say otherwise it takes what the one before makes: the shards of a conversion as `data`, the
features of an extraction as `features`, the run of a pretraining as `init`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gamut.errors import GamutError, RecipeError
from gamut.runs.slurm import says

THEN = "--then"
PARTS = ("convert", "pretrain", "finetune")


def main(argv: Sequence[str], submit: Callable[[list[str], str], tuple[str, dict[str, str]]]) -> int:
    """Submit the parts, each by `submit(words, job before)`, which gives its number and what it makes; where one is
    refused those before it are cancelled. Raises GamutError."""
    parts = split(argv)
    for option in ("--local", "--dry-run"):
        if any(option in part for part in parts):
            raise RecipeError(f"{option} is for one part at a time, not for several with {THEN}.")
    numbers: list[str] = []
    given: dict[str, str] = {}
    try:
        for part in parts:
            words = [*part, *(f"{key}={value}" for key, value in taken(part, given).items())]
            number, made = submit(words, numbers[-1] if numbers else "")
            numbers.append(number)
            given |= made
    except GamutError:
        if numbers:
            says("scancel", *numbers)
            print(f"cancelled: {', '.join(numbers)}, since what was to follow could not be submitted", flush=True)
        raise
    return 0


def split(argv: Sequence[str]) -> list[list[str]]:
    """The parts between `--then`. Raises RecipeError where one is none that can be in a chain."""
    parts: list[list[str]] = [[]]
    for word in argv:
        if word == THEN:
            parts.append([])
        else:
            parts[-1].append(word)
    for place, part in enumerate(parts):
        if part[:1] == ["convert"] and place:
            raise RecipeError(f"A conversion can only be the first part before {THEN}.")
        if not part or part[0] not in PARTS:
            raise RecipeError(f"{' '.join(part[:1]) or 'Nothing'} cannot be a part of {THEN}: {', '.join(PARTS)} can.")
    return parts


def taken(part: Sequence[str], given: dict[str, str]) -> dict[str, str]:
    """What a part takes from those before it."""
    wanted = {"convert": (), "pretrain": ("data",), "finetune": ("data", "init")}[part[0]]
    said = {word.partition("=")[0] for word in part}
    return {key: given[key] for key in wanted if key in given and key not in said}
