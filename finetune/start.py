"""What a round begins with: the weights that `init` means, and what their run knows of the clips that are scored.

It is kept beside the round: `init` may mean other weights, or none, by the time that it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gamut.errors import CheckpointError, RunError
from gamut.files import write_text
from gamut.models.find import find_weights
from gamut.models.weights import file_sha256
from gamut.plan import Clips
from gamut.recipe import schema
from gamut.shards import Index
from gamut.track.run import START
from gamut.train.trained_on import seen

Start = dict[str, str]  # path and sha256 of a file of weights; empty: from scratch, or not known


def start_of(recipe: schema.Recipe) -> Start:
    """The file that `init` means now; empty where it means none, or one that is not there (any more)."""
    if not recipe.init:
        return {}
    try:
        path = find_weights(recipe.init)
        return {"path": str(path), "sha256": file_sha256(path)}
    except CheckpointError:
        return {}


class Leakage(NamedTuple):
    """How many of the scored clips a run was trained on, and whether with their labels: in a fine-tuning."""

    clips: int = 0
    labelled: bool = False

    def told(self, scored: int, column: str, train: Sequence[int | str]) -> str:
        """In words, with what would give a score on unheard clips: the folds `train` of a column alone."""
        if self.labelled:
            return (
                f"the fine-tuning that init is from saw {self.clips} of the {scored} clips that are scored, with their "
                f"labels; for a score on unheard clips fine-tune that with folds.train={list(train)}"
            )
        return (
            f"the pretraining saw {self.clips} of the {scored} clips that are scored, without their labels; for a "
            f"score on unheard clips pretrain with subset.{column}={list(train)}"
        )


def leakage_of(init: str, index: Index, test: Clips) -> Leakage:
    """How many of the clips `test` of `index` the weights behind `init` were trained on (`gamut.train.trained_on`)."""
    found = seen(init, index, np.asarray(test.row))
    return Leakage(int(found.clips.sum()), found.labelled)


def keep_start(folder: Path, start: Start, leakage: Leakage) -> None:
    """Note in a round's folder what it begins with: the run behind it may be gone when the round goes on."""
    write_text(folder / START, json.dumps({"init": start, "seen": leakage._asdict()}))


def kept_start(folder: Path) -> tuple[Start, Leakage]:
    """What `keep_start` noted."""
    noted = json.loads((folder / START).read_text())
    return noted["init"], Leakage(**noted["seen"])


def require_start(results: Sequence[dict[str, Any]], now: Start, init: str, folder: Path) -> None:
    """Raises RunError where a round with a result began with other weights than those that `init` means now.

    Results that do not say what they began with (of an earlier version) are taken, and all are where it is not there
    any more. folder: of the run, for the message.
    """
    for result in results:
        then = result.get("init") or {}
        if then and now and then["sha256"] != now["sha256"]:
            change = "that file has changed" if then["path"] == now["path"] else f"init={init} is now {now['path']}"
            raise RunError(
                f"The run at {folder} was trained from {then['path']} (sha256 {then['sha256'][:12]}), and {change} "
                f"(sha256 {now['sha256'][:12]}): a pretraining has gone on or was done again. Remove or rename "
                f"{folder} to train from these weights. A checkpoint's own folder as init does not move on."
            )
