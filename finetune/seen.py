"""Was the run that the weights are from trained on the clips that are scored?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gamut.errors import GamutError
from gamut.plan import Clips
from gamut.recipe.cli import set_folders
from gamut.remote import Remote, is_remote
from gamut.remote.mirror import mirror
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.shards.select import select
from gamut.track.run import RECIPE, RunFolder


class Seen(NamedTuple):
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


def seen_in_pretraining(init: str, index: Index, test: Clips) -> Seen:
    """How many of the clips `test` of `index` the run behind `init` was trained on, a pretraining or a fine-tuning.

    No clips where `init` is empty, does not lie in a run folder, or its run used other shards: such a run's clips
    cannot be told from here.
    """
    run = _run_of(init)
    if run is None:
        return Seen()
    try:
        recipe: Any = OmegaConf.load(run.path / RECIPE)
        far = Remote(**(OmegaConf.to_container(recipe.remote) if "remote" in recipe else {}))  # type: ignore[arg-type]
        places = set_folders(str(recipe.data), recipe.get("mixture", {}))
        theirs = open_sets([mirror(where, far) if is_remote(where) else Path(where) for where in places], far)
        if index.fingerprint not in [part.fingerprint for part in theirs.sets]:
            return Seen()
        subset: Any = OmegaConf.to_container(recipe.subset, resolve=True) if recipe.subset else {}
        labelled = recipe.get("stage") == "finetune"
        if labelled and recipe.folds.train is not None:
            subset |= {recipe.folds.column: list(recipe.folds.train)}
        trained = select(theirs, subset)
    except (GamutError, OSError, YAMLError, OmegaConfBaseException):
        return Seen()
    return Seen(int(np.isin(test.clip_id, trained.clip_id).sum()), labelled)


def _run_of(init: str) -> RunFolder | None:
    """The run, or the round, that `init` lies in, or whose only round it names."""
    rounds = RunFolder.rounds(Path(init).expanduser()) if init else []
    return rounds[0] if len(rounds) == 1 else RunFolder.find(init) if init else None
