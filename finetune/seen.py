"""Did the pretraining see, without labels, the clips that are scored?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gamut.errors import GamutError
from gamut.models.weights import find_weights
from gamut.plan import Clips
from gamut.recipe.cli import set_folders
from gamut.remote import Remote, is_remote
from gamut.remote.mirror import mirror
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.train.session import select

RECIPE = "recipe.yaml"  # what a run folder keeps


def seen_in_pretraining(init: str, index: Index, test: Clips) -> int:
    """How many of the clips `test` of `index` the run behind `init` was trained on.

    0 where `init` is empty, does not lie in a run folder, or its run used other shards: such a run's clips cannot be
    told from here.
    """
    if not init:
        return 0
    source = find_weights(init).resolve()
    run = next((folder for folder in source.parents if (folder / RECIPE).is_file()), None)
    if run is None:
        return 0
    try:
        recipe: Any = OmegaConf.load(run / RECIPE)
        far = Remote(**(OmegaConf.to_container(recipe.remote) if "remote" in recipe else {}))  # type: ignore[arg-type]
        places = set_folders(str(recipe.data), recipe.get("mixture", {}))
        theirs = open_sets([mirror(where, far) if is_remote(where) else Path(where) for where in places], far)
        if index.fingerprint not in [part.fingerprint for part in theirs.parts]:
            return 0
        subset = OmegaConf.to_container(recipe.subset, resolve=True) if recipe.subset else {}
        trained = select(theirs, subset)  # type: ignore[arg-type]
    except (GamutError, OSError, YAMLError, OmegaConfBaseException):
        return 0
    return int(np.isin(test.clip_id, trained.clip_id).sum())
