"""The front end of trained weights, how a sound becomes what they read: their own, whatever set is near."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

from gamut.errors import GamutError, ShardError
from gamut.files import write_text
from gamut.models.find import metadata_of, statistics_in
from gamut.recipe.cli import require_sets
from gamut.recipe.schema import FrontEnd, Recipe
from gamut.shards.index import Index
from gamut.shards.joined import open_sets
from gamut.track.run import RunFolder

FRONT = "front.json"  # in the folder of a run of an earlier version: its statistics, once they are known


def trained_front(weights: Path, recipe: Recipe, data: str = "") -> FrontEnd:
    """The log-mel that weights were trained on, with the mean and deviation that it is normalised by.

    weights: a file. recipe: the run's; where its `front` has them, it goes first. Weights of earlier versions do not
    hold them; then they are those of the run's set, which is known by the fingerprint of its index and looked for where
    the recipe says, then at `data`.

    Raises ShardError where that set is at neither place.
    """
    if recipe.front.mean is not None and recipe.front.std is not None:
        return recipe.front
    about, mode = metadata_of(weights), recipe.front.mode
    if RunFolder.find(weights) is None:  # then the recipe is another's
        mode = about.get("front", {}).get("mode", mode)
    mean, std = statistics_in(about) or _of_the_set(weights, recipe, data)
    return FrontEnd(mean, std, mode)


def _of_the_set(weights: Path, recipe: Recipe, data: str) -> tuple[float, float]:
    run = RunFolder.find(weights)
    wanted = run.index() if run else ""
    if run and wanted and (known := _kept(run.path / FRONT, wanted)):
        return known
    seen: list[str] = []
    problem: GamutError | None = None
    for place in dict.fromkeys([recipe.data, data]):
        if not place:
            continue
        try:
            index = open_sets(require_sets(replace(recipe, data=place)), recipe.remote)
        except GamutError as error:
            problem = problem or error
            continue
        if wanted in ("", index.fingerprint):
            return _taken(index, recipe.front, weights, run, wanted)
        seen.append(f"the one at {index.folder} is {index.fingerprint}")
    which = f"of the set with the fingerprint {wanted}" if wanted else "of the set that they were trained on"
    raise ShardError(
        f"{weights} was written by an earlier version, which left the statistics of the log-mel to the shards: they "
        f"are those {which}. {'; '.join(seen).capitalize() if seen else problem or 'No set is named'}"
        f"{'.' if seen or not problem else ''} Say where that set is with data=FOLDER, or give front.mean and "
        "front.std."
    )


def _taken(index: Index, front: FrontEnd, weights: Path, run: RunFolder | None, wanted: str) -> tuple[float, float]:
    mean, std = index.normalisation(front)
    if run and wanted:
        with contextlib.suppress(OSError):  # a folder that may not be written is asked for its set again
            write_text(run.path / FRONT, json.dumps({"index": wanted, "mean": mean, "std": std}))
    else:
        print(
            f"warning: {weights} does not say how its log-mel was normalised, nor on which set it was trained; the "
            f"statistics of {index.folder} are taken, mean {mean:.4g} and deviation {std:.4g}.",
            flush=True,
        )
    return mean, std


def _kept(file: Path, index: str) -> tuple[float, float] | None:
    try:
        kept = json.loads(file.read_text())
        return (float(kept["mean"]), float(kept["std"])) if kept["index"] == index else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
